package main

import (
	"fmt"
	"strings"
)

// configCommand prints the settings as the Markdown table of docs/configuration.md; a test fails when that page is stale.
type configCommand struct{}

func (configCommand) Run(a *app) error {
	_, err := fmt.Fprint(a.stdout, configPage(a))
	return err
}

func configPage(a *app) string {
	var page strings.Builder
	page.WriteString("# Configuration\n\nEvery setting is an environment variable and a flag of `enlarger`. This page is made by `make docs` from the code; a test fails when it is stale.\n\n" +
		"| variable | flag | default | meaning |\n|---|---|---|---|\n")
	for _, flag := range a.parser.Model.Flags {
		if len(flag.Envs) == 0 {
			continue
		}
		value := flag.Default
		if value == "" {
			value = "none"
		}
		fmt.Fprintf(&page, "| `%s` | `--%s` | %s | %s |\n", flag.Envs[0], flag.Name, value, strings.ReplaceAll(flag.Help, "|", `\|`))
	}
	return page.String()
}
