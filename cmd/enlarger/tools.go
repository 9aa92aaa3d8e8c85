package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"enlarger/billing"
	"enlarger/engine"
	"enlarger/engine/image"
	"enlarger/engine/video"
)

// toolsCommand prints docs/tools.md from the catalog; a test fails when that page is stale.
type toolsCommand struct {
	Notes string `arg:"" default:"docs/tools" help:"Folder with a note and a picture for each tool." type:"path"`
}

func (c toolsCommand) Run(a *app) error {
	page, err := toolsPage(c.Notes)
	if err != nil {
		return err
	}
	_, err = fmt.Fprint(a.stdout, page)
	return err
}

// toolsPage writes what the catalog says of each tool, and from the folder notes what a person must say: NAME.md on how it works and where it is weak, and
// the picture NAME.jpg.
func toolsPage(notes string) (string, error) {
	prices, err := billing.DefaultPrices()
	if err != nil {
		return "", err
	}
	tools := append(image.Tools(image.Options{}), video.Tools(nil, video.Options{})...)
	var page strings.Builder
	page.WriteString("# Tools\n\nThis page is made by `make docs` from the catalog of the code and the notes in `docs/tools/`; a test fails when it is stale. `make docs-pictures` makes the pictures anew. " +
		"`GET /api/v1/tools` says the same as JSON Schema.\n\n| tool | takes and gives | price |\n|---|---|---|\n")
	for _, t := range tools {
		fmt.Fprintf(&page, "| [`%s`](#%s) | %s | %s |\n", t.Name, t.Name, t.Media, priceText(prices, t))
	}
	for _, t := range tools {
		if err := toolSection(&page, t, notes); err != nil {
			return "", err
		}
	}
	return page.String(), nil
}

func priceText(p *billing.Prices, t engine.Tool) string {
	weight := strconv.FormatFloat(p.Weights[t.Name], 'g', -1, 64)
	if t.Media == engine.Image {
		return fmt.Sprintf("%s for every started %g output megapixels", weight, p.ImageBlock)
	}
	return fmt.Sprintf("%s x output frames x the rate of the size", weight)
}

func toolSection(page *strings.Builder, t engine.Tool, notes string) error {
	fmt.Fprintf(page, "\n## %s\n\n%s\n", t.Name, t.Doc)
	if _, err := os.Stat(filepath.Join(notes, t.Name+".jpg")); err == nil {
		fmt.Fprintf(page, "\n![before and after](tools/%s.jpg)\n", t.Name)
	}
	page.WriteString("\n| config | type | values | default | meaning |\n|---|---|---|---|---|\n")
	for _, f := range t.Fields {
		value := "none"
		switch {
		case f.Required:
			value = "required"
		case f.Default != nil:
			value = fmt.Sprint(f.Default)
		}
		fmt.Fprintf(page, "| `%s` | %s | %s | %s | %s |\n", f.Name, f.Type, valuesOf(f), value, strings.ReplaceAll(f.Doc, "|", `\|`))
	}
	if len(t.Fields) == 0 {
		page.WriteString("| none | | | | |\n")
	}
	rule, err := sizeRule(t)
	if err != nil {
		return err
	}
	page.WriteString("\n" + rule)
	note, err := os.ReadFile(filepath.Join(notes, t.Name+".md"))
	if err == nil {
		page.WriteString("\n" + strings.TrimSpace(string(note)) + "\n")
	} else if !os.IsNotExist(err) {
		return fmt.Errorf("note: %w", err)
	}
	return nil
}

// valuesOf says in a table cell what a field takes.
func valuesOf(f engine.Field) string {
	var words []string
	for _, e := range f.Enum {
		words = append(words, fmt.Sprint(e))
	}
	if len(words) > 0 {
		return strings.Join(words, ", ")
	}
	unit := ""
	if f.Type == "string" {
		unit = " characters"
	}
	switch {
	case f.Min != nil && f.Max != nil:
		return fmt.Sprintf("%g to %g%s", *f.Min, *f.Max, unit)
	case f.Min != nil:
		return fmt.Sprintf("at least %g%s", *f.Min, unit)
	case f.Max != nil:
		return fmt.Sprintf("at most %g%s", *f.Max, unit)
	case f.Type == "boolean":
		return "true, false"
	}
	return "any"
}

// sizeRule shows the output rule by what becomes of one source with the tool's own examples.
func sizeRule(t engine.Tool) (string, error) {
	catalog := engine.NewCatalog(engine.DefaultLimits(), t)
	source := engine.Source{Width: 720, Height: 480, FPS: 25, Frames: 250, Duration: 10}
	lines, same := []string{}, true
	for _, example := range t.Examples {
		order, err := catalog.Order(t.Name, example, "")
		if err != nil {
			return "", fmt.Errorf("%s: example %s: %w", t.Name, example, err)
		}
		plan, err := order.Plan(source)
		if err != nil {
			return "", fmt.Errorf("%s: example %s: %w", t.Name, example, err)
		}
		same = same && plan.Width == source.Width && plan.Height == source.Height
		lines = append(lines, fmt.Sprintf("| `%s` | %dx%d | %s |\n", example, plan.Width, plan.Height, plan.Format))
	}
	if same {
		return "The output has the size of the source.\n", nil
	}
	return fmt.Sprintf("| a source of %dx%d with | becomes | as |\n|---|---|---|\n%s", source.Width, source.Height, strings.Join(lines, "")), nil
}
