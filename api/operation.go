package api

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"github.com/danielgtaylor/huma/v2"
)

// operation is one endpoint: what the OpenAPI document says of it, and what it does.
type operation struct {
	id, method, path string
	tag, summary     string
	// doc is the long description, Markdown.
	doc     string
	params  []*huma.Param
	request *huma.RequestBody
	replies []reply
	// errors are the codes it may refuse with, beside those that every operation has.
	errors []Code
	// public needs no key. streams has a body that may take long, so each step has its own deadline.
	public, streams bool
	handle          func(ctx context.Context, x *exchange, r *http.Request) (*answer, error)
}

// reply is one good answer of an operation.
type reply struct {
	status  int
	doc     string
	body    reflect.Type
	example map[string]any
	headers map[string]string
}

// common are the errors of every authenticated operation.
func common() []Code {
	return []Code{InvalidAPIKey, Unauthorized, GeoRestricted, RateLimited, InternalError, ServiceUnavailable}
}

// describe makes the OpenAPI operation.
func (op operation) describe(registry huma.Registry, table errorTable) *huma.Operation {
	described := &huma.Operation{
		OperationID: op.id, Method: op.method, Path: base + op.path, Tags: []string{op.tag}, Summary: op.summary, Description: op.doc,
		Parameters: op.params, RequestBody: op.request, Responses: map[string]*huma.Response{},
	}
	codes := op.errors
	if op.public {
		described.Security = []map[string][]string{}
	} else {
		codes = append(common(), codes...)
	}
	for _, r := range op.replies {
		described.Responses[strconv.Itoa(r.status)] = op.describeReply(r, registry)
	}
	op.describeErrors(described, codes, registry, table)
	return described
}

func (op operation) describeReply(r reply, registry huma.Registry) *huma.Response {
	response := &huma.Response{Description: r.doc, Headers: op.headers(r.headers)}
	if r.body == nil {
		return response
	}
	media := &huma.MediaType{Schema: registry.Schema(r.body, true, ""), Examples: map[string]*huma.Example{}}
	for name, value := range r.example {
		media.Examples[name] = &huma.Example{Value: value}
	}
	response.Content = map[string]*huma.MediaType{"application/json": media}
	return response
}

// headers describes the headers of a response: those of every response, and its own.
func (op operation) headers(own map[string]string) map[string]*huma.Param {
	all := map[string]string{"X-Request-Id": "Names this request; quote it when you report a problem."}
	if !op.public {
		all["X-RateLimit-Limit"] = "Requests a minute that this key may send."
		all["X-RateLimit-Remaining"] = "Requests left in the sliding window."
		all["X-RateLimit-Reset"] = "Epoch second at which the oldest request leaves the window and one more may be sent than now."
		all["RateLimit"] = "The same as an IETF structured field: r requests left, one more in t seconds."
		all["RateLimit-Policy"] = "The limit as an IETF structured field: q requests in w seconds."
	}
	maps.Copy(all, own)
	headers := map[string]*huma.Param{}
	for name, doc := range all {
		kind := huma.TypeString
		if strings.HasPrefix(name, "X-RateLimit") || name == "Retry-After" {
			kind = huma.TypeInteger
		}
		headers[name] = &huma.Param{Description: doc, Schema: &huma.Schema{Type: kind}}
	}
	return headers
}

// describeErrors groups the codes by status, with an example of each.
func (op operation) describeErrors(described *huma.Operation, codes []Code, registry huma.Registry, table errorTable) {
	slices.Sort(codes)
	for _, code := range codes {
		status, body := table.body(refuse(code), exampleRequestID)
		name := strconv.Itoa(status)
		response := described.Responses[name]
		if response == nil {
			own := map[string]string{}
			switch status {
			case http.StatusAccepted, http.StatusTooManyRequests, http.StatusServiceUnavailable:
				own["Retry-After"] = "Seconds to wait before the next try."
			case http.StatusMethodNotAllowed:
				own["Allow"] = "The methods of this address."
			}
			response = &huma.Response{
				Description: http.StatusText(status), Headers: op.headers(own),
				Content: map[string]*huma.MediaType{"application/json": {
					Schema: registry.Schema(reflect.TypeFor[errorBody](), true, ""), Examples: map[string]*huma.Example{},
				}},
			}
			described.Responses[name] = response
		}
		response.Content["application/json"].Examples[string(code)] = &huma.Example{Summary: table[code].when, Value: body}
	}
}

const exampleRequestID = "req_5b1f0c9e7a3d48d2b6c4e8f01a2b3c4d"

// newDocument is the OpenAPI document before any operation.
func newDocument(cfg Config) *huma.OpenAPI {
	url := strings.TrimRight(cfg.PublicURL, "/")
	if url == "" {
		url = "/"
	}
	return &huma.OpenAPI{
		OpenAPI: "3.1.0",
		Info: &huma.Info{
			Title: "enlarger", Version: orText(cfg.Version, "dev"),
			Description: "Image and video enhancement by asynchronous jobs: submit, poll, download. Speaks the VanceAI Open API, v1.",
			License:     &huma.License{Name: "Apache-2.0", Identifier: "Apache-2.0"},
		},
		Servers:  []*huma.Server{{URL: url}},
		Security: []map[string][]string{{"key": {}}},
		Tags: []*huma.Tag{
			{Name: "Jobs", Description: "A job is one processing task, image or video: create it, poll it, download the result."},
			{Name: "Uploads", Description: "Videos go straight into storage by a presigned URL."},
			{Name: "Credits", Description: "What the account has, and every change of it."},
			{Name: "Tools", Description: "What this server can do, and what it costs."},
		},
		Components: &huma.Components{
			Schemas: huma.NewMapRegistry("#/components/schemas/", schemaName),
			SecuritySchemes: map[string]*huma.SecurityScheme{
				"key": {Type: "http", Scheme: "bearer", Description: "An API key: sk_live_ and 32 characters. Send it as `Authorization: Bearer sk_live_...`."},
			},
		},
	}
}

func orText(text, otherwise string) string {
	if text == "" {
		return otherwise
	}
	return text
}

// schemaName gives the Go types the names that clients' generators will use.
func schemaName(t reflect.Type, hint string) string {
	names := map[reflect.Type]string{
		reflect.TypeFor[jobAccepted](): "JobAccepted", reflect.TypeFor[jobView](): "Job", reflect.TypeFor[resultView](): "Result",
		reflect.TypeFor[jobError](): "JobError", reflect.TypeFor[outputView](): "Output", reflect.TypeFor[jobList](): "JobList",
		reflect.TypeFor[jobCanceled](): "JobCanceled", reflect.TypeFor[jobDeleted](): "JobDeleted",
		reflect.TypeFor[uploadCreated](): "Upload", reflect.TypeFor[creditsView](): "Credits", reflect.TypeFor[ledgerPage](): "Ledger",
		reflect.TypeFor[ledgerEntry](): "LedgerEntry", reflect.TypeFor[toolList](): "Tools", reflect.TypeFor[toolView](): "Tool",
		reflect.TypeFor[pricingView](): "Pricing", reflect.TypeFor[limitsView](): "Limits",
		reflect.TypeFor[errorBody](): "Error", reflect.TypeFor[errorObject](): "ErrorObject",
		reflect.TypeFor[jobRequest](): "JobRequest", reflect.TypeFor[jobForm](): "JobForm", reflect.TypeFor[uploadRequest](): "UploadRequest",
	}
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	if name, ok := names[t]; ok {
		return name
	}
	return huma.DefaultSchemaNamer(t, hint)
}

// sample reads an example of the document.
func sample(text string) any {
	var v any
	if err := json.Unmarshal([]byte(text), &v); err != nil {
		panic(fmt.Sprintf("example %s: %v", text, err)) // a constant of this package; a test makes every example
	}
	return v
}
