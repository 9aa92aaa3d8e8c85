package main

import (
	"context"
	"time"

	"go.uber.org/zap"

	"enlarger/job"
)

// auditor checks the books now and then. Every serve and worker process has one; the database gives each audit to one of them.
type auditor struct {
	jobs  *job.Store
	every time.Duration
	log   *zap.Logger
}

const (
	// auditFor bounds one audit.
	auditFor = 30 * time.Minute
	// auditLines bounds the log lines of one audit; `enlarger audit` prints more.
	auditLines = 100
)

// run looks whether an audit is due, until ctx is done.
func (a auditor) run(ctx context.Context) {
	if a.every <= 0 {
		return
	}
	look := time.NewTicker(min(max(a.every/100, 50*time.Millisecond), time.Minute))
	defer look.Stop()
	planned := false
	for {
		if err := a.once(ctx, &planned); err != nil && ctx.Err() == nil {
			a.log.Error("audit failed", zap.Error(err))
		}
		select {
		case <-ctx.Done():
			return
		case <-look.C:
		}
	}
}

// once audits when that is due and nobody else does.
func (a auditor) once(ctx context.Context, planned *bool) error {
	ctx, stop := context.WithTimeout(ctx, auditFor)
	defer stop()
	if !*planned {
		if err := a.jobs.PlanAudit(ctx, a.every); err != nil {
			return err
		}
		*planned = true
	}
	mine, err := a.jobs.TakeAudit(ctx, a.every)
	if err != nil || !mine {
		return err
	}
	began := time.Now()
	found, err := a.jobs.Audit(ctx)
	for _, v := range found[:min(len(found), auditLines)] {
		a.log.Error("the books do not agree", zap.String("rule", v.Rule), zap.String("row", v.Row), zap.String("detail", v.Detail))
	}
	if err != nil {
		return err // half an audit is none: it is due again soon
	}
	took := time.Since(began)
	a.log.Info("audited", zap.Int("violations", len(found)), zap.Duration("took", took))
	return a.jobs.FileAudit(ctx, found, took, a.every)
}
