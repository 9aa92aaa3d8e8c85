-- +goose Up
-- which of its media's queues a job's wake-up waits in: 0 is served first
ALTER TABLE jobs ADD COLUMN lane BIGINT NOT NULL DEFAULT 0 CHECK (lane BETWEEN 0 AND 2);
-- No index has the lease: a heartbeat then changes no index, and the running jobs are few enough to look at all of them.
DROP INDEX jobs_leases;
CREATE INDEX jobs_running ON jobs (account_id) WHERE status = 'processing';

-- +goose Down
DROP INDEX jobs_running;
CREATE INDEX jobs_leases ON jobs (lease_until) WHERE status = 'processing';
ALTER TABLE jobs DROP COLUMN lane;
