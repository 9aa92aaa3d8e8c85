package main

import (
	"context"
	"errors"
	"fmt"

	"enlarger/engine"
	"enlarger/engine/image"
	"enlarger/modelserver"
)

// editor has the operator's model server carry out prompts; nil when there is none.
func editor(s *settings) (func(context.Context, image.Edit) error, error) {
	if s.ModelServer == "" {
		return nil, nil //nolint:nilnil // no function means no model server
	}
	client, err := modelserver.Open(modelserver.Config{URL: s.ModelServer, Token: s.ModelServerToken, Timeout: s.ModelServerTimeout})
	if err != nil {
		return nil, fmt.Errorf("%w: ENLARGER_MODEL_SERVER: %w", errUsage, err)
	}
	return func(ctx context.Context, e image.Edit) error {
		err := client.Edit(ctx, modelserver.Request{Prompt: e.Prompt, Image: e.Input, Output: e.Output, Width: e.Width, Height: e.Height})
		if refused := (*modelserver.Refused)(nil); errors.As(err, &refused) {
			message := "The model server refused the prompt."
			if refused.Message != "" {
				message = "The model server refused the prompt: " + refused.Message
			}
			return engine.Failf(engine.ProcessingFailed, "%s", message).Because(err)
		}
		return err
	}, nil
}
