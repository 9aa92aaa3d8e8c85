package mutants

import "slices"

// table lists the safeguards by what they protect. SQL mutants keep every parameter in the text ("OR TRUE"), so that the statement stays
// valid and the tests fail for what it does.
func table() []mutant {
	return slices.Concat(fences(), money(), states(), requests(), runs(), parts(), fairness())
}

func in(tests ...string) []string { return tests }

// fences are the right to write.
func fences() []mutant {
	const file, fragment, every = "job/run.go", "fence = $2", "(fence = $2 OR TRUE)"
	machine := in("TestStateMachine")
	return []mutant{
		{"a heartbeat without the fence", file, "Store.Heartbeat", fragment, every, "job", machine},
		{"a phase without the fence", file, "Store.SourceStored", fragment, every, "job", machine},
		{"a reserve without the fence", file, "Store.Reserve", fragment, every, "job", machine},
		{"a finish without the fence", file, "Store.Succeed", fragment, every, "job", machine},
		{"a failure without the fence", file, "Store.Fail", fragment, every, "job", machine},
		{"a retry without the fence", file, "Store.Retry", fragment, every, "job", machine},
		{"a lost run without the fence", file, "Store.Expire", fragment, every, "job", machine},
		{"a yield without the fence", file, "Store.Yield", fragment, every, "job", machine},
		{"a claim that leaves the fence", file, "Store.Claim", "fence = fence + 1", "fence = CASE WHEN fence = 0 THEN 1 ELSE fence END", "job", in("TestCounters")},
	}
}

// money moves once, and only what is there.
func money() []mutant {
	const ledger, run = "billing/ledger.go", "job/run.go"
	return []mutant{
		{"a hold that is confirmed after its end", ledger, "Confirming", "AND state = 'held'", "", "billing", in("TestParallelEnds")},
		{"a hold that is released after its end", ledger, "Release", "AND state = 'held'", "", "billing", in("TestParallelEnds")},
		{"a reserve without the funds", ledger, "Reserving", "AND posted - frozen >= $2", "", "billing", in("TestParallelReserves")},
		{"a confirm that leaves the frozen credits", ledger, "Confirming", "frozen = frozen - h.amount, ", "", "billing", in("TestParallelEnds")},
		{"a grant repeated counts twice", ledger, "Ledger.Grant", "if !added {", "if !added && amount == 0 {", "billing", in("TestGrant")},
		{"a cancel without the refund", "job/client.go", "cancel", "e.undo(ctx, tx)", "addGarbage(ctx, tx, lostFenceGrace, e.source, e.prefix)", "job", in("TestStateMachine")},
		{"a failure without the refund", run, "failRow", "ended.undo(ctx, tx)", "addGarbage(ctx, tx, lostFenceGrace, ended.source, ended.prefix)", "job", in("TestStateMachine")},
		{
			"a success without the charge", run, "Store.Succeed", "billing.Confirming(j.ID, freePlace(j.Media))...",
			`db.Step{SQL: "UPDATE accounts SET " + freePlace(j.Media) + " WHERE id = $1", Args: []any{j.AccountID}}`, "job", in("TestStateMachine"),
		},
		{"a transaction that keeps what it must undo", "db/batch.go", "undo", `pg.Exec(ctx, "rollback")`, `pg.Exec(ctx, "commit")`, "db", in("TestBatch")},
		{"an audit that looks away", "billing/audit.go", "", "WHERE a.frozen <> s.held", "WHERE a.frozen <> s.held AND 1 = 2", "billing", in("TestAuditFinds")},
	}
}

// states change by the book.
func states() []mutant {
	const run, sweep = "job/run.go", "job/sweep.go"
	return []mutant{
		{"a second wake-up that claims a running job", run, "Store.Claim", "status = 'queued' AND", "status IN ('queued', 'processing') AND", "job", in("TestStateMachine", "TestParallelClaim")},
		{"a claim before the back-off is over", run, "Store.Claim", "AND run_at <= now_micros()", "", "job", in("TestBackOffIsKept")},
		{"a sweeper that ignores the lease", run, "Store.Expire", "AND lease_until < now_micros()", "", "job", in("TestStateMachine")},
		{"a failure that is not counted", run, "Store.requeue", "failures = failures + 1, ", "", "job", in("TestCounters")},
		{"a budget that is one too large", run, "Store.requeue", "failures + 1 < $4", "failures < $4", "job", in("TestBudget")},
		{"a drain that counts as a failure", run, "Store.Yield", "`, run_at", "`, failures = failures + 1, run_at", "job", in("TestCounters")},
		{"two sweepers that both dispatch", sweep, "Store.Redispatch", "AND dispatch = $2", "AND (dispatch = $2 OR TRUE)", "job", in("TestSweepersOperationsOnEveryState")},
		{"a place in flight that is never freed", run, "ended.undo", "`+freePlace(e.media)+`", "id = id", "job", in("TestStateMachine")},
		{"a lost answer to COMMIT taken for a loss", run, "Store.settle", "status == want && finished == fence", "false", "job", in("TestLostCommitAnswer")},
		{
			"a lease by the worker's clock", run, "Store.Heartbeat", "lease_until = now_micros() + $3", "lease_until = ` + fmt.Sprint(time.Now().UnixMicro()) + ` + $3",
			"job", in("TestLeaseIsByTheDatabasesClock"),
		},
	}
}

// requests are taken once.
func requests() []mutant {
	const submit, twins = "job/submit.go", "TestIdempotentTwins"
	return []mutant{
		{"a key that fits every request", submit, "replay", "bound != fingerprint", "false", "job", in(twins)},
		{"a key that is bound to nothing", submit, "Store.binding", "None: errBound, ", "", "job", in(twins)},
		{"an upload that is used twice", "job/upload.go", "consumption", "AND status = 'open'", "", "job", in("TestUploads")},
		{"a cap that two pass together", submit, "placing", "` < $2 RETURNING", "` < $2 + 1000 RETURNING", "job", in("TestConcurrencyCap")},
	}
}

// runs are carried to their end, or stopped.
func runs() []mutant {
	const run, work, sweep = "worker/run.go", "worker/worker.go", "worker/sweeper.go"
	second := in("TestSecondFencesResultOutlivesTheFirsts")
	orphans := in("TestOrphansAndExpiredSourcesAreRemoved")
	recorded := in("TestAcknowledgedOnlyWhenRecorded")
	return []mutant{
		{"an acknowledgement before the commit", work, "Worker.handle", "return w.carry(j)", "go w.carry(j)\n\treturn nil", "worker", recorded},
		{"an acknowledgement of what could not be recorded", work, "Worker.handle", `return fmt.Errorf("claim: %w", err)`, "return nil", "worker", recorded},
		{"a cancel that does not stop the work", run, "run.beat", "case errors.Is(err, job.ErrStale):", "case false:", "worker", in("TestCancelStopsTheWork")},
		{"a stop message that wakes nobody", work, "Worker.listen", "r.wake()", "_ = r", "worker", in("TestStopMessageStopsAtOnce")},
		{"a result taken away from the fence that won", run, "run.removeResult", "err != nil || named", "err != nil || (named && err != nil)", "worker", in("TestStaleRunKeepsAResultThatItsRowNames")},
		{"a result thrown away by its own finish", run, "run.finish", "fence < r.job.Fence", "fence <= r.job.Fence", "worker", orphans},
		{"a result whose name lacks the fence", run, "run.store", "storage.ResultKey(r.job.ID, r.job.Fence,", "storage.ResultKey(r.job.ID, 1,", "worker", second},
		{"a lost fence's result that stays", run, "run.finish", "discard = append(", "_ = append(", "worker", second},
		{"a finish before the result is stored", run, "run.steps", `{"store", r.store}, {"finish", r.finish}`, `{"finish", r.finish}, {"store", r.store}`, "worker", in("TestJobIsCarriedToItsResult")},
		{"a result that nobody measures", run, "run.process", "r.result.Width != r.plan.Width", "false", "worker", in("TestFailuresRefundAndLeaveNothing")},
		{"a sweeper that believes every wake-up is there", sweep, "Sweeper.waitingJobs", "s.look(ctx, w)", `w.ID == "", error(nil)`, "worker", in("TestFlushedRedisLosesNothing")},
		{"a retry whose wake-up comes too early", "worker/dispatch.go", "Dispatcher.enqueue", "delay+time.Second", "delay", "worker", in("TestRetryIsOnTime")},
		{"an orphan that is somebody's result", sweep, "Sweeper.orphansUnder", "if named {", "if named && ctx.Err() != nil {", "worker", orphans},
	}
}

// parts of a film are made once, by whoever may, and joined when all are there.
func parts() []mutant {
	const file, film, video, fragment, every = "job/segments.go", "worker/film.go", "engine/video/segments.go", "fence = $3", "(fence = $3 OR TRUE)"
	machine := in("TestSegmentStates")
	return []mutant{
		{"a part's heartbeat without the fence", file, "Store.SegmentHeartbeat", fragment, every, "job", machine},
		{"a part done without the fence", file, "Store.SegmentDone", fragment, every, "job", machine},
		{"a part given back without the fence", file, "Store.ReleaseSegment", fragment, every, "job", machine},
		{"a part that two take", file, "Store.ClaimSegment", "AND `+free+` AND EXISTS", "AND (`+free+` OR TRUE) AND EXISTS", "job", in("TestParallelSegmentClaims")},
		{"a part taken while its job waits", file, "Store.ClaimSegment", "jobs.status = 'processing'", "jobs.status IN ('queued', 'processing')", "job", machine},
		{"a part that kills every helper", file, "Store.freeSegments", "< $2 ORDER", "< $2 + 1000 ORDER", "job", machine},
		{"a dead worker's part that does not count", file, "Store.ClaimSegment", "WHEN status = 'running' THEN 1 ELSE 0 END, status", "WHEN status = 'running' THEN 0 ELSE 0 END, status", "job", machine},
		{"parts of a job that was canceled", file, "holdRun", "AND status = 'processing'", "", "job", in("TestSegmentsAreWrittenOnce", "TestCancelWhileSegmentsAreCut")},
		{"parts that outlive their job", "job/run.go", "Store.Succeed", "forgetting(j.ID, j.Media)...", "forgetting(j.ID, engine.Image)...", "job", in("TestSuccessForgetsSegments")},
		{"a join before all is there", film, "run.allDone", "s.Status != job.SegmentDone", "s.Part.Number < 0", "worker", in("TestFilmIsSharedByWorkers")},
		{"a helper that does not make room", film, "Worker.helpIsWanted", "err != nil || waits", "err != nil || (waits && err != nil)", "worker", in("TestHelpersMakeRoom")},
		{"a join that nobody looks at", video, "editor.join", "return engine.Output{}, errors.Join(err, os.Remove(task.Output))", "out.Warnings = nil", "engine/video", in("TestJoinRefuses")},
		{"a part that begins in the middle of a group", video, "cut", "append(begins, key), append(seeks, before)", "append(begins, key), append(seeks, key)", "engine/video", in("TestCutCoversEverything")},
	}
}

// fairness lets every account be served.
func fairness() []mutant {
	return []mutant{
		{"a flood that goes first", "job/submit.go", "insertion", "ELSE 2 END", "ELSE 0 END", "job", in("TestLanes")},
		{"a turn that never comes", "worker/sweeper.go", "Sweeper.promote", "w.Lane == 0", "w.Lane >= 0", "worker", in("TestNobodyStarves")},
		{"a turn taken out of turn", "job/sweep.go", "Store.Promote", "AND NOT EXISTS (SELECT 1 FROM jobs running WHERE", "AND NOT EXISTS (SELECT 1 FROM jobs running WHERE FALSE AND", "job", in("TestPromote")},
	}
}
