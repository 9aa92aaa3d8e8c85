package image

import (
	"context"

	"enlarger/engine"
)

type removeConfig struct{}

func removeBgTool(o Options) engine.Tool {
	return engine.Define(engine.Spec[removeConfig]{
		Name:     "remove_bg",
		Media:    engine.Image,
		Doc:      "Cuts the subject out: the background becomes transparent (png and webp) or white (jpg). Without an output_format the result is a png.",
		Examples: []removeConfig{{}},
		Size:     func(_ removeConfig, src engine.Source) (width, height int) { return src.Width, src.Height },
		Format: func(asked string) string {
			if asked == "" {
				return "png"
			}
			return asked
		},
		Fits:    fits,
		Measure: o.Measure,
		Memory: func(_ removeConfig, task engine.Task) int64 {
			return o.filterMemory(task, filter{}) + matteMemory
		},
		Process: func(ctx context.Context, _ removeConfig, task engine.Task) (engine.Output, error) {
			return o.filtered(ctx, "remove_bg", task, o.removeBackground)
		},
	})
}

// The bounds of what a subject takes of a picture: beyond them there is none, or nothing else.
const partLeast, partMost = 0.003, 0.985

// removeBackground looks for the subject. A picture that shows none is left whole, and says so.
func (o Options) removeBackground(ctx context.Context, source *picture) (prepared, error) {
	m, err := o.matteOf(ctx, source.raster)
	if err != nil {
		return prepared{}, err
	}
	return m.cutting(), nil
}

// cutting is what cuts the subject out.
func (m *matte) cutting() prepared {
	prep := prepared{
		filter: filter{apply: m.cut}, transparent: true,
		facts: map[string]any{"method": m.method, "confidence": hundredths(float32(m.confidence)), "subject_part": hundredths(float32(m.part))},
	}
	const sure = 0.4
	switch {
	case m.part < partLeast || m.part > partMost:
		prep.filter, prep.facts["confidence"] = filter{}, 0.0
		prep.warnings = []string{"No subject could be told from a background; the image was left whole."}
	case m.confidence < sure:
		prep.warnings = []string{"The subject could not be told from the background with confidence; look at the result before you use it."}
	}
	return prep
}
