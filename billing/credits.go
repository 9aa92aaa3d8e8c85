// Package billing keeps the money: accounts' credits, the holds that reserve them for a job, the append-only entries behind
// both, and the price table.
//
// Funds are checked by the conditional UPDATE that takes them, never by a read before it, and every step writes its entry in the same
// transaction, so that the balance can be recomputed from the entries at any time (Audit). The two-phase form (reserve, then
// confirm or release) follows TigerBeetle's two-phase transfers.
package billing

import (
	"encoding/json"
	"fmt"
	"math"
	"strconv"
	"strings"
)

// Millicredits is an amount of money: a thousandth of a credit.
type Millicredits int64

// Credit is the size of one credit.
const Credit Millicredits = 1000

// maxAmount keeps sums of many amounts far from overflow: a trillion credits.
const maxAmount = 1_000_000_000_000 * Credit

// String prints credits with one to three decimals, and 0 as "0".
func (m Millicredits) String() string {
	if m == 0 {
		return "0"
	}
	sign, abs := "", uint64(m)
	if m < 0 {
		sign, abs = "-", uint64(-m)
	}
	decimals := strings.TrimRight(fmt.Sprintf("%03d", abs%1000), "0")
	if decimals == "" {
		decimals = "0"
	}
	return fmt.Sprintf("%s%d.%s", sign, abs/1000, decimals)
}

// MarshalJSON writes credits as a JSON number, as in the API document: 1.0, 12.5, 0.
func (m Millicredits) MarshalJSON() ([]byte, error) { return []byte(m.String()), nil }

// UnmarshalJSON reads a JSON number of credits with at most three decimals.
func (m *Millicredits) UnmarshalJSON(text []byte) error {
	var n json.Number
	if len(text) > 0 && text[0] == '"' {
		return fmt.Errorf("credits must be a number")
	}
	if err := json.Unmarshal(text, &n); err != nil {
		return fmt.Errorf("credits must be a number: %w", err)
	}
	v, err := ParseCredits(n.String())
	*m = v
	return err
}

// ParseCredits reads an amount of credits: digits with at most three decimals, up to a trillion either way.
func ParseCredits(text string) (Millicredits, error) {
	wrong := fmt.Errorf("%q is no amount of credits: want a number with at most three decimals, such as 12.5", text)
	digits, negative := strings.CutPrefix(text, "-")
	whole, part, point := strings.Cut(digits, ".")
	if whole == "" || (point && part == "") || len(part) > 3 || strings.ContainsAny(whole+part, "+-_") {
		return 0, wrong
	}
	units, err := strconv.ParseInt(whole, 10, 64)
	if err != nil || units > int64(maxAmount/Credit) {
		return 0, wrong
	}
	thousandths, err := strconv.ParseInt((part + "000")[:3], 10, 64)
	if err != nil {
		return 0, wrong
	}
	m := Millicredits(units)*Credit + Millicredits(thousandths)
	if m > maxAmount {
		return 0, wrong
	}
	if negative {
		m = -m
	}
	return m, nil
}

// ceilMillicredits rounds a computed price up to the next thousandth, at most maxAmount, with a grain of tolerance so that 0.3 stays 300.
func ceilMillicredits(credits float64) Millicredits {
	return Millicredits(math.Ceil(min(credits*float64(Credit)-1e-6, float64(maxAmount))))
}
