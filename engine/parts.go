package engine

import (
	"context"
	"encoding/json"
)

// Part is a piece of a task that one run can make alone, on whatever machine: a long video is cut into parts, each is made on its own,
// and the parts are joined. It is small and can be stored as JSON.
type Part struct {
	// Number counts from 0 in the order of the parts.
	Number int `json:"number"`
	// Frames is how many frames of the source it has: its share of the work.
	Frames int64 `json:"frames"`
	// Spec is what the tool must know to make it; nobody else reads it.
	Spec json.RawMessage `json:"spec,omitempty"`
}

// Piece is a part that was made.
type Piece struct {
	Part Part
	// Path is the local file that was made.
	Path string
	// Facts are what Make said of it.
	Facts json.RawMessage
}

// Parts is how a tool's work is shared out. All of it works on the task of the whole.
type Parts[C any] struct {
	// Cut divides a task. Fewer than two parts: it is not worth while, or cannot be done without harm, and the task is done whole.
	Cut func(ctx context.Context, config C, task Task) ([]Part, error)
	// Fits says whether this process would make a part just as the one that cut the task: with the same models, encoders and settings. Parts
	// that were not made alike would show where they meet.
	Fits func(part Part) bool
	// Make makes one part into task.Output. Facts are for Join; they are small.
	Make func(ctx context.Context, config C, task Task, part Part) (facts json.RawMessage, err error)
	// Join makes the output of all parts, in their order. It is as good as the output of the whole, or an error.
	Join func(ctx context.Context, config C, task Task, pieces []Piece) (Output, error)
}

// parting is Parts with the config's type forgotten.
type parting struct {
	fits    func(part Part) bool
	cut     func(ctx context.Context, config any, task Task) ([]Part, error)
	produce func(ctx context.Context, config any, task Task, part Part) (json.RawMessage, error)
	join    func(ctx context.Context, config any, task Task, pieces []Piece) (Output, error)
}

//nolint:forcetypeassert // a config is what the tool's own parse made
func partingOf[C any](p *Parts[C]) *parting {
	if p == nil {
		return nil
	}
	return &parting{
		fits: p.Fits,
		cut:  func(ctx context.Context, config any, task Task) ([]Part, error) { return p.Cut(ctx, config.(C), task) },
		produce: func(ctx context.Context, config any, task Task, part Part) (json.RawMessage, error) {
			return p.Make(ctx, config.(C), task, part)
		},
		join: func(ctx context.Context, config any, task Task, pieces []Piece) (Output, error) {
			return p.Join(ctx, config.(C), task, pieces)
		},
	}
}

// Cut divides a task into parts that can be made apart; fewer than two when it is to be done whole.
func (o *Order) Cut(ctx context.Context, task Task) ([]Part, error) {
	if o.Tool.parts == nil {
		return nil, nil
	}
	return o.Tool.parts.cut(ctx, o.config, task)
}

// Fits says whether this process makes a part as the one that cut the task would.
func (o *Order) Fits(part Part) bool { return o.Tool.parts != nil && o.Tool.parts.fits(part) }

// Make makes one part of a task into task.Output. Errors are as those of Process.
func (o *Order) Make(ctx context.Context, task Task, part Part) (facts json.RawMessage, err error) {
	return o.Tool.parts.produce(ctx, o.config, task, part)
}

// Join makes the output of a task from all its parts. Errors are as those of Process.
func (o *Order) Join(ctx context.Context, task Task, pieces []Piece) (Output, error) {
	return o.Tool.parts.join(ctx, o.config, task, pieces)
}
