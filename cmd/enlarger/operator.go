package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"text/tabwriter"
	"time"

	"enlarger/account"
	"enlarger/billing"
	"enlarger/db"
	"enlarger/job"
)

// operatorTimeout bounds an operator's command.
const operatorTimeout = time.Minute

// withDatabase opens the database for an operator's command. The schema must be there.
func (a *app) withDatabase(do func(ctx context.Context, d *db.DB) error) error {
	return a.withDatabaseFor(operatorTimeout, do)
}

func (a *app) withDatabaseFor(limit time.Duration, do func(ctx context.Context, d *db.DB) error) error {
	ctx, stop := context.WithTimeout(a.base, limit)
	defer stop()
	d, err := db.Open(ctx, db.Config{URL: a.settings.database(), MaxConns: 2})
	if err != nil {
		return err
	}
	defer d.Close()
	if err := d.Migrated(ctx); err != nil {
		return err
	}
	return do(ctx, d)
}

// show prints a value as JSON, or as text when the caller has one.
func (a *app) show(asJSON bool, value any, text func(w *tabwriter.Writer)) error {
	if asJSON {
		encoder := json.NewEncoder(a.stdout)
		encoder.SetIndent("", "  ")
		return encoder.Encode(value)
	}
	w := tabwriter.NewWriter(a.stdout, 2, 4, 2, ' ', 0)
	text(w)
	return w.Flush()
}

type migrateCommand struct{}

func (migrateCommand) Run(a *app) error {
	ctx, stop := context.WithTimeout(a.base, 10*operatorTimeout)
	defer stop()
	d, err := db.Open(ctx, db.Config{URL: a.settings.database(), MaxConns: 4, StatementTimeout: 10 * operatorTimeout})
	if err != nil {
		return err
	}
	defer d.Close()
	if err := d.Migrate(ctx); err != nil {
		return err
	}
	fmt.Fprintln(a.stdout, "The database schema is up to date.")
	if a.settings.S3Endpoint == "" {
		return nil
	}
	store, err := openS3(a.settings)
	if err != nil {
		return err
	}
	if err := store.EnsureBucket(ctx); err != nil {
		return err
	}
	fmt.Fprintln(a.stdout, "The bucket", a.settings.S3Bucket, "is there.")
	return nil
}

type accountCommand struct {
	Create  accountCreate  `cmd:"" help:"Create an account."`
	List    accountList    `cmd:"" help:"List accounts with their credits."`
	Limit   accountLimit   `cmd:"" help:"Set an account's own limits; 0 is the server's default."`
	Suspend accountSuspend `cmd:"" help:"Refuse all requests of an account until it is resumed."`
	Resume  accountResume  `cmd:"" help:"Make a suspended account active again."`
}

type accountCreate struct {
	Name    string `required:"" help:"Name of the account."`
	Credits string `default:"0" help:"Credits to grant at once."`
	JSON    bool   `name:"json" help:"Print JSON."`
}

func (c accountCreate) Run(a *app) error {
	amount, err := billing.ParseCredits(c.Credits)
	if err != nil || amount < 0 {
		return errors.Join(errUsage, err)
	}
	return a.withDatabase(func(ctx context.Context, d *db.DB) error {
		created, err := account.NewStore(d).Create(ctx, c.Name)
		if err != nil {
			return err
		}
		if amount > 0 {
			if err := billing.NewLedger(d).Grant(ctx, created.ID, amount, "", "with the account"); err != nil {
				return err
			}
		}
		return a.show(c.JSON, created, func(w *tabwriter.Writer) { fmt.Fprintf(w, "account\t%s\ncredits\t%v\n", created.ID, amount) })
	})
}

type accountList struct {
	JSON bool `name:"json" help:"Print JSON."`
}

type accountLine struct {
	account.Account
	billing.Balance
}

func (c accountList) Run(a *app) error {
	return a.withDatabase(func(ctx context.Context, d *db.DB) error {
		accounts, err := account.NewStore(d).List(ctx)
		if err != nil {
			return err
		}
		lines := make([]accountLine, 0, len(accounts))
		for _, one := range accounts {
			balance, err := billing.NewLedger(d).Balance(ctx, one.ID)
			if err != nil {
				return err
			}
			lines = append(lines, accountLine{one, balance})
		}
		return a.show(c.JSON, lines, func(w *tabwriter.Writer) {
			fmt.Fprintln(w, "ACCOUNT\tNAME\tSTATUS\tBALANCE\tFROZEN\tUSED")
			for _, l := range lines {
				fmt.Fprintf(w, "%s\t%s\t%s\t%v\t%v\t%v\n", l.ID, l.Name, l.Status, l.Balance.Balance, l.Frozen, l.Used)
			}
		})
	})
}

type accountLimit struct {
	Account   string `required:"" help:"Id of the account."`
	MaxImage  int    `help:"Image jobs in flight."`
	MaxVideo  int    `help:"Video jobs in flight."`
	RateLimit int    `name:"requests" help:"Requests a minute and key."`
}

func (c accountLimit) Run(a *app) error {
	return a.withDatabase(func(ctx context.Context, d *db.DB) error {
		return account.NewStore(d).SetLimits(ctx, c.Account, c.MaxImage, c.MaxVideo, c.RateLimit)
	})
}

type accountSuspend struct {
	Account string `required:"" help:"Id of the account."`
}

func (c accountSuspend) Run(a *app) error { return a.setStatus(c.Account, "suspended") }

type accountResume struct {
	Account string `required:"" help:"Id of the account."`
}

func (c accountResume) Run(a *app) error { return a.setStatus(c.Account, "active") }

func (a *app) setStatus(id, status string) error {
	return a.withDatabase(func(ctx context.Context, d *db.DB) error {
		if err := account.NewStore(d).SetStatus(ctx, id, status); err != nil {
			return err
		}
		_, err := fmt.Fprintf(a.stdout, "%s is %s.\n", id, status)
		return err
	})
}

type keyCommand struct {
	Create keyCreate `cmd:"" help:"Create a key. Its secret is printed once."`
	List   keyList   `cmd:"" help:"List an account's keys."`
	Revoke keyRevoke `cmd:"" help:"Revoke a key, at once and for good."`
}

type keyCreate struct {
	Account string `required:"" help:"Id of the account."`
	Name    string `required:"" help:"Name of the key, for example my-app-prod."`
	JSON    bool   `name:"json" help:"Print JSON."`
}

func (c keyCreate) Run(a *app) error {
	return a.withDatabase(func(ctx context.Context, d *db.DB) error {
		key, secret, err := account.NewStore(d).CreateKey(ctx, c.Account, c.Name)
		if err != nil {
			return err
		}
		value := struct {
			account.Key
			Secret string `json:"key"`
		}{key, secret}
		return a.show(c.JSON, value, func(w *tabwriter.Writer) {
			fmt.Fprintf(w, "id\t%s\nkey\t%s\n\nThe key is shown this once only: keep it safe.\n", key.ID, secret)
		})
	})
}

type keyList struct {
	Account string `required:"" help:"Id of the account."`
	JSON    bool   `name:"json" help:"Print JSON."`
}

func (c keyList) Run(a *app) error {
	return a.withDatabase(func(ctx context.Context, d *db.DB) error {
		keys, err := account.NewStore(d).Keys(ctx, c.Account)
		if err != nil {
			return err
		}
		return a.show(c.JSON, keys, func(w *tabwriter.Writer) {
			fmt.Fprintln(w, "ID\tNAME\tSTATUS\tPREFIX\tLAST USED")
			for _, k := range keys {
				used := "never"
				if !k.LastUsed.IsZero() {
					used = k.LastUsed.Format(time.RFC3339)
				}
				fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", k.ID, k.Name, k.Status, k.Prefix, used)
			}
		})
	})
}

type keyRevoke struct {
	Account string `required:"" help:"Id of the account."`
	Key     string `required:"" help:"Id of the key."`
}

func (c keyRevoke) Run(a *app) error {
	return a.withDatabase(func(ctx context.Context, d *db.DB) error {
		key, err := account.NewStore(d).RevokeKey(ctx, c.Account, c.Key)
		if err != nil {
			return err
		}
		_, err = fmt.Fprintf(a.stdout, "%s (%s) is revoked.\n", key.ID, key.Prefix)
		return err
	})
}

type creditsCommand struct {
	Grant creditsGrant `cmd:"" help:"Give an account credits, or take available ones away with a negative amount."`
	Show  creditsShow  `cmd:"" help:"Show an account's credits."`
}

type creditsGrant struct {
	Account   string `required:"" help:"Id of the account."`
	Amount    string `required:"" help:"Credits, with at most three decimals."`
	Reference string `help:"Makes the grant safe to repeat: the same reference grants once."`
	Note      string `help:"Why, for the ledger."`
}

func (c creditsGrant) Run(a *app) error {
	amount, err := billing.ParseCredits(c.Amount)
	if err != nil {
		return errors.Join(errUsage, err)
	}
	return a.withDatabase(func(ctx context.Context, d *db.DB) error {
		if _, err := account.NewStore(d).Get(ctx, c.Account); err != nil {
			return err
		}
		if err := billing.NewLedger(d).Grant(ctx, c.Account, amount, c.Reference, c.Note); err != nil {
			return err
		}
		return creditsShow{Account: c.Account}.print(ctx, a, d)
	})
}

type creditsShow struct {
	Account string `required:"" help:"Id of the account."`
	JSON    bool   `name:"json" help:"Print JSON."`
}

func (c creditsShow) Run(a *app) error {
	return a.withDatabase(func(ctx context.Context, d *db.DB) error { return c.print(ctx, a, d) })
}

func (c creditsShow) print(ctx context.Context, a *app, d *db.DB) error {
	balance, err := billing.NewLedger(d).Balance(ctx, c.Account)
	if err != nil {
		return err
	}
	return a.show(c.JSON, balance, func(w *tabwriter.Writer) {
		fmt.Fprintf(w, "balance\t%v\nfrozen\t%v\nused\t%v\n", balance.Balance, balance.Frozen, balance.Used)
	})
}

type auditCommand struct {
	JSON bool `name:"json" help:"Print JSON."`
}

func (c auditCommand) Run(a *app) error {
	return a.withDatabaseFor(auditFor, func(ctx context.Context, d *db.DB) error {
		found, err := job.NewStore(d).Audit(ctx)
		if err != nil {
			return err
		}
		if found == nil {
			found = []billing.Violation{}
		}
		err = a.show(c.JSON, found, func(w *tabwriter.Writer) {
			for _, v := range found {
				fmt.Fprintf(w, "%s\t%s\t%s\n", v.Rule, v.Row, v.Detail)
			}
			if len(found) == 0 {
				fmt.Fprintln(w, "The books are clean.")
			}
		})
		if err == nil && len(found) > 0 {
			err = fmt.Errorf("the audit found %d violations", len(found))
		}
		return err
	})
}
