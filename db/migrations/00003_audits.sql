-- +goose Up
-- when the fleet's next audit of the books is due, and what the last one found; one row
CREATE TABLE audits (
  id          TEXT PRIMARY KEY CHECK (id = 'books'),
  due_at      BIGINT NOT NULL,
  finished_at BIGINT NOT NULL DEFAULT 0,
  -- microseconds
  took        BIGINT NOT NULL DEFAULT 0,
  -- JSON: the number of rows that break each rule
  broken      TEXT NOT NULL DEFAULT '{}'
);

-- +goose Down
DROP TABLE audits;
