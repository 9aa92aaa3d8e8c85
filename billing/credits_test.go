package billing

import (
	"encoding/json"
	"math"
	"regexp"
	"testing"
)

func TestParseCredits(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		text string
		want Millicredits
		back string
	}{
		{"0", 0, "0"},
		{"-0", 0, "0"},
		{"0.000", 0, "0"},
		{"1", 1000, "1.0"},
		{"1.0", 1000, "1.0"},
		{"12.5", 12_500, "12.5"},
		{"0.001", 1, "0.001"},
		{"-0.001", -1, "-0.001"},
		{"0.01", 10, "0.01"},
		{"0.120", 120, "0.12"},
		{"-12.345", -12_345, "-12.345"},
		{"007", 7000, "7.0"},
		{"1000000000000", maxAmount, "1000000000000.0"},
		{"-1000000000000.000", -maxAmount, "-1000000000000.0"},
	} {
		got, err := ParseCredits(c.text)
		if err != nil || got != c.want || got.String() != c.back {
			t.Errorf("%q is %d (%s), %v; want %d (%s)", c.text, got, got, err, c.want, c.back)
		}
	}
	for _, text := range []string{
		"", "-", ".", "1.", ".5", "-.5", "1.2345", "1e3", "1E3", "+1", "--1", "1.-5", "1.+5", "1,5", "1 000", " 1", "1 ", "1_000", "0x10", "٣", "NaN", "Inf", "1.2.3",
		"1000000000000.001", "1000000000001", "-1000000000001", "99999999999999999999", "one",
	} {
		if got, err := ParseCredits(text); err == nil {
			t.Errorf("%q is taken for %v", text, got)
		}
	}
}

func TestCreditsString(t *testing.T) {
	t.Parallel()
	for m, want := range map[Millicredits]string{
		math.MaxInt64: "9223372036854775.807", math.MinInt64: "-9223372036854775.808", 999: "0.999", 1001: "1.001", -1100: "-1.1",
	} {
		if m.String() != want {
			t.Errorf("%d is %s, want %s", int64(m), m, want)
		}
	}
}

func TestCreditsJSON(t *testing.T) {
	t.Parallel()
	text, err := json.Marshal(Balance{Balance: 12_500, Used: 1000, Frozen: 0})
	if want := `{"balance":12.5,"used":1.0,"frozen":0}`; err != nil || string(text) != want {
		t.Errorf("%s, %v; want %s", text, err, want)
	}
	var b Balance
	if err := json.Unmarshal([]byte(`{"balance": 12.5, "used": 1, "frozen": -0.001}`), &b); err != nil || b != (Balance{12_500, 1000, -1}) {
		t.Errorf("%+v, %v", b, err)
	}
	for _, bad := range []string{`"1"`, `1.2345`, `1e3`, `true`, `{}`, `[]`, `1000000000001`, `null`} {
		var m Millicredits
		if err := m.UnmarshalJSON([]byte(bad)); err == nil {
			t.Errorf("%s is taken for %v", bad, m)
		}
	}
}

func FuzzParseCredits(f *testing.F) {
	for _, seed := range []string{"0", "1.0", "12.5", "-0.001", "1000000000000", "1.", ".5", "1e3", "+1", "1_0", "٣", "1.2.3"} {
		f.Add(seed)
	}
	amount := regexp.MustCompile(`^-?[0-9]+(\.[0-9]{1,3})?$`)
	f.Fuzz(func(t *testing.T, text string) {
		m, err := ParseCredits(text)
		if err != nil {
			return
		}
		if !amount.MatchString(text) || m > maxAmount || m < -maxAmount {
			t.Fatalf("%q is taken for %d", text, m)
		}
		if again, err := ParseCredits(m.String()); err != nil || again != m {
			t.Fatalf("%q became %s, which reads as %d, %v", text, m, again, err)
		}
		var read Millicredits
		written, err := json.Marshal(m)
		if err != nil || json.Unmarshal(written, &read) != nil || read != m {
			t.Fatalf("%q became the JSON %s, which reads as %d", text, written, read)
		}
	})
}
