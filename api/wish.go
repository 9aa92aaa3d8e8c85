package api

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"sort"
	"strings"
	"unicode"
	"unicode/utf8"
)

const (
	// maxJSONBytes bounds a JSON body, maxConfigBytes its config and maxFieldBytes every other text; a URL may be longer.
	maxJSONBytes   = 1 << 20
	maxConfigBytes = 64 << 10
	maxFieldBytes  = 4 << 10
	maxURLBytes    = 8 << 10
	// maxFields bounds the keys of a JSON body and the parts of a form.
	maxFields = 64

	maxMetadata      = 20
	maxMetadataKey   = 40
	maxMetadataValue = 500
	maxWarnings      = 20
)

// readBody reads a small body whole.
func readBody(body *patientBody) ([]byte, error) {
	text, err := io.ReadAll(body)
	if fault := body.fault("A JSON body may have 1 MiB at most. Send a file as multipart/form-data, or its address as image_url."); fault != nil {
		return nil, fault
	}
	if err != nil {
		return nil, fmt.Errorf("read body: %w", err)
	}
	if !utf8.Valid(text) {
		return nil, &Error{Code: InvalidParameter, Message: "The body must be UTF-8."}
	}
	return text, nil
}

// object is a JSON object's values by key, undecoded.
type object map[string]json.RawMessage

// readObject decodes a JSON object, one level deep. A key that comes twice is refused, because two readers would disagree on it.
func readObject(text []byte, what string) (object, error) {
	wrong := &Error{Code: InvalidParameter, Message: what + " must be a JSON object."}
	decoder := json.NewDecoder(bytes.NewReader(text))
	if start, err := decoder.Token(); err != nil || start != json.Delim('{') {
		return nil, wrong
	}
	fields := object{}
	for decoder.More() {
		token, err := decoder.Token()
		name, ok := token.(string)
		if err != nil || !ok {
			return nil, wrong
		}
		var value json.RawMessage
		if err := decoder.Decode(&value); err != nil {
			return nil, wrong
		}
		if _, twice := fields[name]; twice {
			return nil, badParam(shown(name), "is given twice.")
		}
		if len(fields) == maxFields {
			return nil, &Error{Code: InvalidParameter, Message: fmt.Sprintf("%s has more than %d keys.", what, maxFields)}
		}
		fields[name] = value
	}
	if _, err := decoder.Token(); err != nil {
		return nil, wrong
	}
	if _, err := decoder.Token(); !errors.Is(err, io.EOF) {
		return nil, wrong
	}
	return fields, nil
}

// text takes a string out of the object; null and a missing key are "".
func (o object) text(name string, most int) (string, error) {
	raw := o.take(name)
	if raw == nil {
		return "", nil
	}
	var value string
	if json.Unmarshal(raw, &value) != nil {
		return "", badParam(name, "must be a string.")
	}
	return value, checkText(name, value, most)
}

// take removes a key and gives its value; nil for null and for a missing key.
func (o object) take(name string) json.RawMessage {
	raw := o[name]
	delete(o, name)
	if string(raw) == "null" {
		return nil
	}
	return raw
}

func checkText(name, value string, most int) error {
	if len(value) > most {
		return badParam(name, "must have at most %d bytes.", most)
	}
	if strings.ContainsFunc(value, unicode.IsControl) {
		return badParam(name, "must have no control characters.")
	}
	return nil
}

// readWish decodes the JSON body of POST /jobs.
func readWish(body *patientBody) (*wish, error) {
	text, err := readBody(body)
	if err != nil {
		return nil, err
	}
	fields, err := readObject(text, "The body")
	if err != nil {
		return nil, err
	}
	for _, name := range []string{"image", "file"} {
		if fields.take(name) != nil {
			return nil, badParam(name, "must be a file in a multipart/form-data body. In JSON, send the image's address as image_url.")
		}
	}
	w := &wish{config: fields.take("config")}
	if w.config, err = plainConfig(w.config); err != nil {
		return nil, err
	}
	for name := range fields {
		if err := w.setField(name, fields); err != nil {
			return nil, err
		}
	}
	sort.Strings(w.sources)
	sort.Strings(w.warnings)
	return w, nil
}

// setField takes one field of a JSON body.
func (w *wish) setField(name string, fields object) error {
	if name == "metadata" {
		return w.setMetadata(fields.take(name))
	}
	most, known := textFields()[name]
	if !known {
		return w.ignore(name)
	}
	value, err := fields.text(name, most)
	if err != nil {
		return err
	}
	w.setText(name, value)
	return nil
}

// textFields are the text fields of POST /jobs with their largest size in bytes.
func textFields() map[string]int {
	return map[string]int{
		"tool": maxFieldBytes, "output_format": maxFieldBytes, "upload_id": maxFieldBytes, "image_url": maxURLBytes, "source_url": maxURLBytes,
	}
}

// setText takes a text field. An empty source is the same as none: templates send such.
func (w *wish) setText(name, value string) {
	switch name {
	case "tool":
		w.tool = value
		return
	case "output_format":
		w.format = value
		return
	}
	if value == "" {
		return
	}
	w.sources = append(w.sources, name)
	if name == "upload_id" {
		w.uploadID = value
		return
	}
	w.url = value
}

// promise refuses a parameter that would change what a job costs or does if this server had it: to ignore it, as others are, would
// charge a client that asked for a quote.
func promise(name string) error {
	switch name {
	case "dry_run", "max_credits", "wait", "webhook_url":
		return badParam(name, "is not available on this server. Leave it out.")
	}
	return nil
}

func (w *wish) ignore(name string) error {
	if err := promise(name); err != nil {
		return err
	}
	switch {
	case len(w.warnings) < maxWarnings:
		w.warnings = append(w.warnings, shown(name)+" is not a parameter of this request and was ignored.")
	case len(w.warnings) == maxWarnings:
		w.warnings = append(w.warnings, "~ More parameters were ignored.")
	}
	return nil
}

// plainConfig takes a config that is a JSON text inside a JSON string for what it holds.
func plainConfig(config json.RawMessage) (json.RawMessage, error) {
	if len(config) > maxConfigBytes {
		return nil, badParam("config", "must have at most %d bytes.", maxConfigBytes)
	}
	if len(config) == 0 || config[0] != '"' {
		return config, nil
	}
	var inner string
	if json.Unmarshal(config, &inner) != nil {
		return nil, badParam("config", "must be a JSON object.")
	}
	return json.RawMessage(inner), nil
}

// setMetadata reads a flat object of strings.
func (w *wish) setMetadata(raw json.RawMessage) error {
	if raw == nil {
		return nil
	}
	wrong := badParam("metadata", `must be an object of strings, for example {"order": "1234"}.`)
	if len(raw) > maxConfigBytes {
		return wrong
	}
	fields, err := readObject(raw, "metadata")
	if err != nil {
		return wrong
	}
	w.metadata = map[string]string{}
	for key, value := range fields {
		var text *string
		if json.Unmarshal(value, &text) != nil || text == nil {
			return wrong
		}
		w.metadata[key] = *text
	}
	return checkMetadata(w.metadata)
}

func checkMetadata(metadata map[string]string) error {
	if len(metadata) > maxMetadata {
		return badParam("metadata", "must have at most %d keys.", maxMetadata)
	}
	for key, value := range metadata {
		if n := utf8.RuneCountInString(key); n < 1 || n > maxMetadataKey || utf8.RuneCountInString(value) > maxMetadataValue ||
			strings.ContainsFunc(key+value, unicode.IsControl) {
			return badParam("metadata", "must have keys of 1 to %d and values of at most %d characters, without control characters.", maxMetadataKey, maxMetadataValue)
		}
	}
	return nil
}

// shown makes a client's own word safe to repeat in a message.
func shown(name string) string {
	const most = 40
	clean := []rune(strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return -1
		}
		return r
	}, name))
	if len(clean) > most {
		return string(clean[:most]) + "..."
	}
	return string(clean)
}
