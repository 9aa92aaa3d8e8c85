package engine

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Field is one config key of a tool, as read from its struct's tags.
type Field struct {
	// Name is the JSON key; Type is integer, number, boolean or string.
	Name, Type, Doc string
	// Enum are the only values allowed, when not empty.
	Enum []any
	// Min and Max bound a number's value or a string's length in characters; nil is no bound.
	Min, Max *float64
	Required bool
	// Default is nil when leaving the key out means "off" or "as the source".
	Default any

	index int
}

// maxConfigBytes bounds the config text: the largest real one is a 1,000-character prompt.
const maxConfigBytes = 64 << 10

// Schema is the JSON Schema (2020-12) of the tool's config.
func (t *Tool) Schema() map[string]any {
	properties := map[string]any{}
	required := []string{}
	for _, f := range t.Fields {
		properties[f.Name] = f.schema()
		if f.Required {
			required = append(required, f.Name)
		}
	}
	schema := map[string]any{"type": "object", "properties": properties}
	if len(required) > 0 {
		schema["required"] = required
	}
	return schema
}

func (f Field) schema() map[string]any {
	s := map[string]any{"type": f.Type, "description": f.Doc}
	if len(f.Enum) > 0 {
		s["enum"] = f.Enum
	}
	if f.Default != nil {
		s["default"] = f.Default
	}
	low, high := "minimum", "maximum"
	if f.Type == "string" {
		low, high = "minLength", "maxLength"
	}
	if f.Min != nil {
		s[low] = *f.Min
	}
	if f.Max != nil {
		s[high] = *f.Max
	}
	if f.Type == "string" && f.Required {
		s["pattern"] = `\S` // blank is as good as nothing
	}
	return s
}

func fieldsOf[C any](defaults C) ([]Field, error) {
	v := reflect.ValueOf(defaults)
	if v.Kind() != reflect.Struct {
		return nil, fmt.Errorf("config is a %s, want a struct", v.Kind())
	}
	var fields []Field
	for i := range v.NumField() {
		f, err := fieldOf(v.Type().Field(i), v.Field(i))
		if err != nil {
			return nil, err
		}
		if slices.ContainsFunc(fields, func(other Field) bool { return other.Name == f.Name }) {
			return nil, fmt.Errorf("two fields are named %s", f.Name)
		}
		f.index = i
		fields = append(fields, f)
	}
	return fields, nil
}

func fieldOf(sf reflect.StructField, value reflect.Value) (Field, error) {
	name, options, _ := strings.Cut(sf.Tag.Get("json"), ",")
	f := Field{Name: name, Doc: sf.Tag.Get("doc"), Required: sf.Tag.Get("required") == "true"}
	if name == "" || name == "-" || f.Doc == "" || !sf.IsExported() {
		return f, fmt.Errorf("field %s must be exported, with json and doc tags", sf.Name)
	}
	switch value.Kind() {
	case reflect.Int:
		f.Type = "integer"
	case reflect.Float64:
		f.Type = "number"
	case reflect.Bool:
		f.Type = "boolean"
	case reflect.String:
		f.Type = "string"
	default:
		return f, fmt.Errorf("field %s has kind %s", sf.Name, value.Kind())
	}
	if !value.IsZero() || value.Kind() == reflect.Bool {
		f.Default = value.Interface()
	}
	for _, bound := range []struct {
		tag string
		to  **float64
	}{{"min", &f.Min}, {"max", &f.Max}} {
		if text := sf.Tag.Get(bound.tag); text != "" {
			n, err := strconv.ParseFloat(text, 64)
			if err != nil {
				return f, fmt.Errorf("field %s: %s %q is no number", sf.Name, bound.tag, text)
			}
			*bound.to = &n
		}
	}
	if text := sf.Tag.Get("enum"); text != "" {
		if f.Type != "integer" && f.Type != "string" {
			return f, fmt.Errorf("field %s: a %s takes no enum", sf.Name, f.Type)
		}
		for word := range strings.SplitSeq(text, ",") {
			if f.Type != "integer" {
				f.Enum = append(f.Enum, word)
				continue
			}
			n, err := strconv.Atoi(word)
			if err != nil {
				return f, fmt.Errorf("field %s: enum %q is no integer", sf.Name, word)
			}
			f.Enum = append(f.Enum, n)
		}
	}
	return f, f.checkDefault(value, strings.Contains(options, "omit"))
}

// checkDefault makes sure that the canonical config, which has the defaults filled in, reads as itself: a default must be a value that
// a client could send, or the zero value and omitted.
func (f Field) checkDefault(value reflect.Value, omitted bool) error {
	if omitted && !value.IsZero() {
		return fmt.Errorf("%s: a default other than zero must not be omitted, or a client's zero would become the default", f.Name)
	}
	if omitted || f.Required {
		return nil
	}
	text, err := json.Marshal(value.Interface())
	if err != nil {
		return fmt.Errorf("%s: default: %w", f.Name, err)
	}
	if err := f.decode(text, reflect.New(value.Type()).Elem()); err != nil {
		return fmt.Errorf("the default is no valid value (if it stands for nothing, its json tag needs omitzero): %w", err)
	}
	return nil
}

// configObject reads the config's keys. Nothing at all and null mean an empty config.
func configObject(config json.RawMessage) (map[string]json.RawMessage, error) {
	raw := map[string]json.RawMessage{}
	config = bytes.TrimSpace(config)
	if len(config) == 0 || string(config) == "null" {
		return raw, nil
	}
	if len(config) > maxConfigBytes {
		return nil, &ParamError{Param: "config", Message: "is larger than 64 KiB."}
	}
	if err := json.Unmarshal(config, &raw); err != nil || raw == nil {
		return nil, &ParamError{Param: "config", Message: `must be a JSON object, for example {"scale": 2}.`}
	}
	return raw, nil
}

// decodeFields fills the struct that into points to. A null is the same as a key left out.
func decodeFields(fields []Field, raw map[string]json.RawMessage, into any) error {
	v := reflect.ValueOf(into).Elem()
	for _, f := range fields {
		text, ok := raw[f.Name]
		if !ok || string(text) == "null" {
			if f.Required {
				return &ParamError{Param: "config." + f.Name, Message: "is required: " + f.expects() + "."}
			}
			continue
		}
		if err := f.decode(text, v.Field(f.index)); err != nil {
			return err
		}
	}
	return nil
}

func (f Field) decode(text json.RawMessage, into reflect.Value) error {
	wrong := &ParamError{Param: "config." + f.Name, Message: "must be " + f.expects() + "."}
	var size float64
	switch f.Type {
	case "boolean":
		return orElse(json.Unmarshal(text, into.Addr().Interface()), wrong)
	case "string":
		if json.Unmarshal(text, into.Addr().Interface()) != nil {
			return wrong
		}
		size = float64(utf8.RuneCountInString(into.String()))
		if f.Required && strings.TrimSpace(into.String()) == "" {
			return wrong
		}
		if len(f.Enum) > 0 && !slices.Contains(f.Enum, any(into.String())) {
			return wrong
		}
	default:
		n, err := number(text)
		if err != nil || (f.Type == "integer" && n != math.Trunc(n)) {
			return wrong
		}
		size = n
		if f.Type == "number" {
			into.SetFloat(n)
			break
		}
		if math.Abs(n) > 1<<53 || (len(f.Enum) > 0 && !slices.Contains(f.Enum, any(int(n)))) {
			return wrong
		}
		into.SetInt(int64(n))
	}
	if (f.Min != nil && size < *f.Min) || (f.Max != nil && size > *f.Max) {
		return wrong
	}
	return nil
}

func orElse(err error, wrong *ParamError) error {
	if err != nil {
		return wrong
	}
	return nil
}

// number reads a JSON number and nothing else: encoding/json alone would also refuse 4.0 for an int.
func number(text json.RawMessage) (float64, error) {
	var n json.Number
	if len(text) == 0 || text[0] == '"' {
		return 0, fmt.Errorf("not a number")
	}
	if err := json.Unmarshal(text, &n); err != nil {
		return 0, err
	}
	return n.Float64()
}

// expects says in words what the field takes.
func (f Field) expects() string {
	if len(f.Enum) > 0 {
		words := make([]string, len(f.Enum))
		for i, e := range f.Enum {
			words[i] = fmt.Sprint(e)
		}
		if len(words) == 1 {
			return words[0]
		}
		return strings.Join(words[:len(words)-1], ", ") + " or " + words[len(words)-1]
	}
	article := "a "
	if f.Type == "integer" {
		article = "an "
	}
	unit := ""
	if f.Type == "string" {
		unit = " characters"
	}
	switch {
	case f.Min != nil && f.Max != nil:
		return fmt.Sprintf("%s%s of %s to %s%s", article, f.Type, plain(*f.Min), plain(*f.Max), unit)
	case f.Min != nil:
		return fmt.Sprintf("%s%s of at least %s%s", article, f.Type, plain(*f.Min), unit)
	case f.Max != nil:
		return fmt.Sprintf("%s%s of at most %s%s", article, f.Type, plain(*f.Max), unit)
	}
	return article + f.Type
}

// plain writes a number without an exponent.
func plain(n float64) string { return strconv.FormatFloat(n, 'f', -1, 64) }

// takeHint reads what a client may say of its video, and removes it from the config.
func takeHint(raw map[string]json.RawMessage) (Source, error) {
	hint := Source{}
	one := 1.0
	zero := 0.0
	most := 1e6
	claims := []struct {
		field Field
		into  any
	}{
		{Field{Name: "source_width", Type: "integer", Min: &one, Max: &most}, &hint.Width},
		{Field{Name: "source_height", Type: "integer", Min: &one, Max: &most}, &hint.Height},
		{Field{Name: "duration", Type: "number", Min: &zero, Max: &most}, &hint.Duration},
	}
	for _, c := range claims {
		text, ok := raw[c.field.Name]
		delete(raw, c.field.Name)
		if !ok || string(text) == "null" {
			continue
		}
		if err := c.field.decode(text, reflect.ValueOf(c.into).Elem()); err != nil {
			return hint, err
		}
	}
	if hint.Duration > 0 {
		hint.FPS = assumedFPS
	}
	return hint, nil
}

// assumedFPS is the frame rate of an estimate made from a claimed duration alone.
const assumedFPS = 30

// printable makes a client's key safe to repeat in a message.
func printable(name string) string {
	const most = 40
	clean := strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return -1
		}
		return r
	}, name)
	if utf8.RuneCountInString(clean) > most {
		return string([]rune(clean)[:most]) + "..."
	}
	return clean
}
