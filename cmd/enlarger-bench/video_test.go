package main

import (
	"errors"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

func TestParseVideo(t *testing.T) {
	t.Parallel()
	o, err := parseVideo([]string{"-sizes", "320x180", "-seconds", "2"}, io.Discard)
	if err != nil || !slices.Equal(o.sizes, []string{"320x180"}) || o.seconds != 2 || o.rounds != 3 {
		t.Errorf("%+v, %v", o, err)
	}
	for _, args := range [][]string{{"-sizes", "320"}, {"-sizes", "32x32"}, {"-sizes", ""}, {"-seconds", "0"}, {"-rounds", "21"}, {"-tools", "video"}, {"more"}, {"-unknown"}} {
		if _, err := parseVideo(args, io.Discard); !errors.Is(err, errUsage) {
			t.Errorf("%q: %v", args, err)
		}
	}
}

func TestBareArguments(t *testing.T) {
	t.Parallel()
	got := bareArguments([]string{
		"-progress", "pipe:3", "-stats_period", "0.5", "-hide_banner", "-loglevel", "level+warning", "-i", "file:/a.mp4", "-filter_complex",
		"[0:0]lut3d=file=/t.cube,split=2[wide][measured];[wide]zscale=matrix=bt2020nc[picture];[measured]extractplanes=g[bright]", "-map", "[picture]", "file:/out.mp4",
	})
	want := []string{"-hide_banner", "-i", "file:/a.mp4", "-filter_complex", "[0:0]lut3d=file=/t.cube,zscale=matrix=bt2020nc[picture]", "-map", "[picture]", "file:/out.mp4"}
	if !slices.Equal(got, want) {
		t.Errorf("%q", got)
	}
	if got := encoderOptions(strings.Fields("ffmpeg -c:v libx264 -map 0:0 -crf:v 17 out.mp4")); !slices.Equal(got[:4], strings.Fields("-c:v libx264 -crf:v 17")) {
		t.Errorf("%q", got)
	}
}

// TestResidentTree counts a process and one under it.
func TestResidentTree(t *testing.T) {
	t.Parallel()
	cmd := exec.Command("sh", "-c", "sleep 60 & read wait; kill $!")
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	own, all := residentTree(os.Getpid(), 1), residentTree(os.Getpid(), 3)
	if own < 1<<20 || all <= own {
		t.Errorf("%d bytes, with children %d", own, all)
	}
	_ = stdin.Close()
	_ = cmd.Wait()
}
