package storage

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"sort"
	"strings"
)

// scanBatch is how many directory entries are read at once.
const scanBatch = 1024

// entry is a name in a directory that stands for keys: one object, or everything below a directory.
type entry struct {
	name   string
	prefix string // the object's key, or what all keys below start with
	object bool
}

// visit is called with each key in order; false ends the walk.
type visit func(key, name string) bool

// walk visits the objects whose keys start with prefix and come after the key after, in byte order. It holds at most
// page+1 names of a directory at a time, however large the directory is.
func (d disk) walk(ctx context.Context, prefix, after string, page int, each visit) error {
	_, err := d.walkDir(ctx, entry{name: objectsDir}, prefix, after, page, each)
	return err
}

func (d disk) walkDir(ctx context.Context, dir entry, prefix, after string, page int, each visit) (goOn bool, err error) {
	last := ""
	for {
		entries, more, err := d.scan(ctx, dir, prefix, after, last, page)
		if errors.Is(err, fs.ErrNotExist) {
			return true, nil // emptied and removed by a delete meanwhile
		}
		if err != nil {
			return false, err
		}
		for _, e := range entries {
			if e.object {
				goOn = each(e.prefix, e.name)
			} else {
				goOn, err = d.walkDir(ctx, e, prefix, after, page, each)
			}
			if err != nil || !goOn {
				return false, err
			}
		}
		if !more {
			return true, nil
		}
		// The sort key of the last entry: nothing up to it is looked at again.
		last = entries[len(entries)-1].sortKey()
	}
}

// sortKey orders entries as their keys are ordered. A chunk has no object of its own key beside it, so the keys below
// one entry never lie between those below another.
func (e entry) sortKey() string { return e.prefix }

// scan returns the first page entries of dir, in order, that may hold wanted keys and come after the sort key last.
func (d disk) scan(ctx context.Context, dir entry, prefix, after, last string, page int) (entries []entry, more bool, err error) {
	handle, err := d.root.Open(dir.name)
	if err != nil {
		return nil, false, err
	}
	defer func() { _ = handle.Close() }() // read only
	for {
		if err := ctx.Err(); err != nil {
			return nil, false, err
		}
		names, err := handle.Readdirnames(scanBatch)
		for _, name := range names {
			e, ok := dir.child(name)
			if ok && (last == "" || e.sortKey() > last) && e.wanted(prefix, after) {
				entries = append(entries, e)
			}
		}
		if len(entries) > 2*page+scanBatch || err != nil {
			sort.Slice(entries, func(i, j int) bool { return entries[i].sortKey() < entries[j].sortKey() })
			if len(entries) > page {
				entries, more = entries[:page], true
			}
		}
		if errors.Is(err, io.EOF) {
			return entries, more, nil
		}
		if err != nil {
			return nil, false, fmt.Errorf("read directory: %w", err)
		}
	}
}

// child is false for a file that is none of ours.
func (e entry) child(name string) (entry, bool) {
	part, isObject, err := nameKey(name)
	if err != nil {
		return entry{}, false
	}
	return entry{name: path.Join(e.name, name), prefix: e.prefix + part, object: isObject}, true
}

func (e entry) wanted(prefix, after string) bool {
	if e.object {
		return strings.HasPrefix(e.prefix, prefix) && e.prefix > after
	}
	related := strings.HasPrefix(e.prefix, prefix) || strings.HasPrefix(prefix, e.prefix)
	return related && (e.prefix > after || strings.HasPrefix(after, e.prefix))
}
