package billing

import (
	"testing"

	"enlarger/db"
	"enlarger/testbed/databases"
)

func TestTotals(t *testing.T) {
	t.Parallel()
	databases.Each(t, func(t *testing.T, d *db.DB) {
		ctx, l := t.Context(), NewLedger(d)
		if got, err := l.Totals(ctx); err != nil || got != (Totals{}) {
			t.Errorf("no accounts: %+v, %v", got, err)
		}
		newAccount(t, ctx, d, 700)
		newAccount(t, ctx, d, 0)
		if got, err := l.Totals(ctx); err != nil || got != (Totals{Accounts: 2, Available: 700}) {
			t.Errorf("%+v, %v", got, err)
		}
		if _, err := d.ExecContext(ctx, "UPDATE accounts SET frozen = 200, used = 50 WHERE posted = 700"); err != nil {
			t.Fatal(err)
		}
		if got, err := l.Totals(ctx); err != nil || got != (Totals{Accounts: 2, Available: 500, Frozen: 200, Used: 50}) {
			t.Errorf("%+v, %v", got, err)
		}
	})
}
