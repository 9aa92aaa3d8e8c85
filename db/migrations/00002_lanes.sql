-- +goose Up
-- which of its media's queues a job's wake-up waits in: 0 is served first
ALTER TABLE jobs ADD COLUMN lane BIGINT NOT NULL DEFAULT 0 CHECK (lane BETWEEN 0 AND 2);

-- +goose Down
ALTER TABLE jobs DROP COLUMN lane;
