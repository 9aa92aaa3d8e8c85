package api

import (
	"net/http"

	"github.com/danielgtaylor/huma/v2"
)

// serveReference adds the OpenAPI document and the page made of it. Both are open to everyone.
func (s *server) serveReference(document *huma.OpenAPI) error {
	text, err := document.MarshalJSON()
	if err != nil {
		return err
	}
	s.routes.HandleFunc("GET "+base+"/openapi.json", func(w http.ResponseWriter, _ *http.Request) {
		s.send(w.(*exchange), &answer{status: http.StatusOK, body: text, header: map[string]string{"Cache-Control": "public, max-age=300"}})
	})
	return nil
}
