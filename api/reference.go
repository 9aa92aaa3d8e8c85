package api

import (
	"bytes"
	"crypto/sha256"
	_ "embed"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"html/template"
	"net/http"
	"sort"
	"strings"

	"github.com/danielgtaylor/huma/v2"
)

//go:embed reference.html
var referencePage string

//go:embed reference.css
var referenceStyle string

// serveReference adds the OpenAPI document and the page made of it. Both are open to everyone, and the page needs no other host.
func (s *server) serveReference(document *huma.OpenAPI) error {
	text, err := document.MarshalJSON()
	if err != nil {
		return fmt.Errorf("encode OpenAPI document: %w", err)
	}
	page, err := renderReference(document, s.cfg.PublicURL, kinds())
	if err != nil {
		return err
	}
	style := sha256.Sum256([]byte(referenceStyle))
	policy := "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; style-src 'sha256-" + base64.StdEncoding.EncodeToString(style[:]) + "'"
	for where, a := range map[string]*answer{
		"/openapi.json": {body: text, header: map[string]string{}},
		"/docs":         {body: page, header: map[string]string{"Content-Type": "text/html; charset=utf-8", "Content-Security-Policy": policy}},
	} {
		a.status = http.StatusOK
		a.header["Cache-Control"] = "public, max-age=300"
		s.routes.HandleFunc("GET "+base+where, func(w http.ResponseWriter, _ *http.Request) { s.send(exchangeOf(w), a) })
	}
	return nil
}

// page is what the template shows.
type page struct {
	Title, Description, Version, URL string
	Style                            template.CSS
	Groups                           []pageGroup
	Errors, JobErrors                []pageError
}

type pageGroup struct {
	Name, Description string
	Operations        []pageOperation
}

type pageOperation struct {
	ID, Method, Path, Summary, Description string
	Params                                 []pageField
	Requests                               []pageBody
	Responses                              []pageResponse
}

type pageField struct {
	Name, In, Type, Description string
	Required                    bool
}

type pageBody struct {
	Type     string
	Fields   []pageField
	Examples []pageExample
}

type pageExample struct{ Name, Text string }

type pageResponse struct {
	Status, Description string
	Fields              []pageField
	Examples            []pageExample
}

type pageError struct {
	Status           int
	Code, Type, When string
}

func renderReference(document *huma.OpenAPI, url string, errors []kind) ([]byte, error) {
	parsed, err := template.New("reference").Parse(referencePage)
	if err != nil {
		return nil, fmt.Errorf("reference page: %w", err)
	}
	p := page{
		Title: document.Info.Title, Description: document.Info.Description, Version: document.Info.Version, URL: strings.TrimRight(url, "/") + base,
		Style: template.CSS(referenceStyle), //nolint:gosec // our own file
	}
	for _, tag := range document.Tags {
		p.Groups = append(p.Groups, pageGroup{Name: tag.Name, Description: tag.Description, Operations: pageOperations(document, tag.Name)})
	}
	for _, k := range errors {
		p.Errors = append(p.Errors, pageError{Status: k.status, Code: string(k.code), Type: k.category, When: k.when})
	}
	for _, k := range jobErrorKinds() {
		p.JobErrors = append(p.JobErrors, pageError{Code: string(k.code), Type: k.code.Type(), When: k.when})
	}
	var out bytes.Buffer
	if err := parsed.Execute(&out, p); err != nil {
		return nil, fmt.Errorf("reference page: %w", err)
	}
	return out.Bytes(), nil
}

func pageOperations(document *huma.OpenAPI, tag string) []pageOperation {
	found := []pageOperation{}
	for _, path := range sortedKeys(document.Paths) {
		item := document.Paths[path]
		for _, m := range []struct {
			name string
			op   *huma.Operation
		}{{"GET", item.Get}, {"POST", item.Post}, {"DELETE", item.Delete}} {
			if m.op != nil && len(m.op.Tags) > 0 && m.op.Tags[0] == tag {
				found = append(found, pageOperationOf(document, m.name, path, m.op))
			}
		}
	}
	return found
}

func pageOperationOf(document *huma.OpenAPI, method, path string, op *huma.Operation) pageOperation {
	o := pageOperation{ID: op.OperationID, Method: method, Path: path, Summary: op.Summary, Description: op.Description}
	for _, p := range op.Parameters {
		o.Params = append(o.Params, pageField{Name: p.Name, In: p.In, Type: typeName(document, p.Schema), Description: p.Description, Required: p.Required})
	}
	if op.RequestBody != nil {
		for _, kind := range sortedKeys(op.RequestBody.Content) {
			media := op.RequestBody.Content[kind]
			o.Requests = append(o.Requests, pageBody{Type: kind, Fields: pageFields(document, media.Schema), Examples: pageExamples(media)})
		}
	}
	for _, status := range sortedKeys(op.Responses) {
		r := op.Responses[status]
		shown := pageResponse{Status: status, Description: r.Description}
		if media := r.Content["application/json"]; media != nil {
			shown.Examples = pageExamples(media)
			if status < "300" {
				shown.Fields = pageFields(document, media.Schema)
			}
		}
		o.Responses = append(o.Responses, shown)
	}
	return o
}

func resolve(document *huma.OpenAPI, s *huma.Schema) *huma.Schema {
	if s != nil && s.Ref != "" {
		return document.Components.Schemas.SchemaFromRef(s.Ref)
	}
	return s
}

func pageFields(document *huma.OpenAPI, s *huma.Schema) []pageField {
	fields := []pageField{}
	s = resolve(document, s)
	if s == nil {
		return fields
	}
	required := map[string]bool{}
	for _, name := range s.Required {
		required[name] = true
	}
	for _, name := range sortedKeys(s.Properties) {
		p := s.Properties[name]
		description := p.Description
		if description == "" {
			description = resolve(document, p).Description
		}
		fields = append(fields, pageField{Name: name, Type: typeName(document, p), Description: description, Required: required[name]})
	}
	sort.SliceStable(fields, func(i, j int) bool { return fields[i].Required && !fields[j].Required })
	return fields
}

// typeName says in a word or two what a schema takes.
func typeName(document *huma.OpenAPI, s *huma.Schema) string {
	if s == nil {
		return ""
	}
	name := s.Type
	if s.Ref != "" {
		name = s.Ref[strings.LastIndex(s.Ref, "/")+1:]
	}
	if s.Format == "binary" {
		name = "file"
	}
	if len(s.Enum) > 0 {
		words := []string{}
		for _, e := range s.Enum {
			words = append(words, fmt.Sprint(e))
		}
		name = strings.Join(words, " | ")
	}
	if s.Items != nil {
		name = typeName(document, s.Items) + "[]"
	}
	if inner := resolve(document, s); inner != nil && inner.Nullable {
		name += " or null"
	}
	return name
}

func pageExamples(media *huma.MediaType) []pageExample {
	found := []pageExample{}
	for _, name := range sortedKeys(media.Examples) {
		var out bytes.Buffer
		encoder := json.NewEncoder(&out)
		encoder.SetEscapeHTML(false)
		encoder.SetIndent("", "  ")
		if err := encoder.Encode(media.Examples[name].Value); err == nil {
			found = append(found, pageExample{Name: name, Text: strings.TrimSpace(out.String())})
		}
	}
	return found
}

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	sort.Strings(keys)
	return keys
}
