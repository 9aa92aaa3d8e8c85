-- +goose Up
-- Times are microseconds since 1970 (0: none), money is millicredits. The CHECKs repeat what the code guarantees, so that wrong
-- code cannot store a lie.

CREATE TABLE accounts (
  id           TEXT PRIMARY KEY,
  name         TEXT NOT NULL,
  status       TEXT NOT NULL DEFAULT 'active' CHECK (status IN ('active', 'suspended')),
  -- posted: granted minus confirmed. frozen: reserved by open holds. used: confirmed.
  posted       BIGINT NOT NULL DEFAULT 0 CHECK (posted >= 0),
  frozen       BIGINT NOT NULL DEFAULT 0 CHECK (frozen >= 0 AND frozen <= posted),
  used         BIGINT NOT NULL DEFAULT 0 CHECK (used >= 0),
  -- jobs queued or processing, by media; the cap is checked by the UPDATE that raises it
  active_image BIGINT NOT NULL DEFAULT 0 CHECK (active_image >= 0),
  active_video BIGINT NOT NULL DEFAULT 0 CHECK (active_video >= 0),
  -- 0: the server's default
  max_image    BIGINT NOT NULL DEFAULT 0 CHECK (max_image >= 0),
  max_video    BIGINT NOT NULL DEFAULT 0 CHECK (max_video >= 0),
  rate_limit   BIGINT NOT NULL DEFAULT 0 CHECK (rate_limit >= 0),
  created_at   BIGINT NOT NULL
);

CREATE TABLE api_keys (
  id         TEXT PRIMARY KEY,
  account_id TEXT NOT NULL REFERENCES accounts (id),
  name       TEXT NOT NULL,
  -- SHA-256 of the secret, hex
  hash       TEXT NOT NULL UNIQUE,
  prefix     TEXT NOT NULL,
  status     TEXT NOT NULL DEFAULT 'active' CHECK (status IN ('active', 'revoked')),
  last_used  BIGINT NOT NULL DEFAULT 0,
  created_at BIGINT NOT NULL,
  revoked_at BIGINT NOT NULL DEFAULT 0,
  CHECK ((status = 'revoked') = (revoked_at > 0))
);
CREATE INDEX api_keys_account ON api_keys (account_id, created_at);

CREATE TABLE jobs (
  id              TEXT PRIMARY KEY,
  account_id      TEXT NOT NULL REFERENCES accounts (id),
  key_id          TEXT NOT NULL,
  tool            TEXT NOT NULL,
  media           TEXT NOT NULL CHECK (media IN ('image', 'video')),
  config          TEXT NOT NULL,
  format          TEXT NOT NULL,
  hint            TEXT NOT NULL DEFAULT '{}',
  warnings        TEXT NOT NULL DEFAULT '[]',
  metadata        TEXT NOT NULL DEFAULT '{}',
  estimate        BIGINT NOT NULL DEFAULT 0 CHECK (estimate >= 0),

  source_kind     TEXT NOT NULL CHECK (source_kind IN ('inline', 'upload', 'url')),
  source_url      TEXT NOT NULL DEFAULT '',
  -- where the source lies in the bucket; for a URL, where the worker will put it
  source_object   TEXT NOT NULL,
  -- every object of the job's results starts with this
  results_prefix  TEXT NOT NULL,
  source_ready    BOOLEAN NOT NULL,
  source_size     BIGINT NOT NULL DEFAULT 0,
  upload_id       TEXT NOT NULL DEFAULT '',

  status          TEXT NOT NULL CHECK (status IN ('queued', 'processing', 'succeeded', 'failed', 'canceled')),
  phase           TEXT NOT NULL DEFAULT '' CHECK (phase IN ('', 'uploading', 'syncing', 'processing')),
  progress        BIGINT NOT NULL DEFAULT 0 CHECK (progress BETWEEN 0 AND 100),
  fence           BIGINT NOT NULL DEFAULT 0 CHECK (fence >= 0),
  failures        BIGINT NOT NULL DEFAULT 0 CHECK (failures >= 0),
  worker          TEXT NOT NULL DEFAULT '',
  lease_until     BIGINT NOT NULL DEFAULT 0,
  -- a queued job is not taken before run_at; dispatch numbers its wake-ups, dispatched_at is when the last one was seen in Redis
  run_at          BIGINT NOT NULL,
  dispatch        BIGINT NOT NULL DEFAULT 1,
  dispatched_at   BIGINT NOT NULL DEFAULT 0,

  result_object   TEXT NOT NULL DEFAULT '',
  result          TEXT NOT NULL DEFAULT '',
  error_code      TEXT NOT NULL DEFAULT '',
  error_message   TEXT NOT NULL DEFAULT '',
  finished_fence  BIGINT NOT NULL DEFAULT 0,
  created_at      BIGINT NOT NULL,
  started_at      BIGINT NOT NULL DEFAULT 0,
  finished_at     BIGINT NOT NULL DEFAULT 0,
  deleted_at      BIGINT NOT NULL DEFAULT 0,

  CHECK ((status = 'processing') = (phase <> '')),
  CHECK ((status IN ('succeeded', 'failed', 'canceled')) = (finished_at > 0)),
  CHECK (status <> 'processing' OR (lease_until > 0 AND fence > 0)),
  CHECK ((status = 'succeeded') = (progress = 100)),
  CHECK ((status = 'failed') = (error_code <> '')),
  CHECK (status <> 'succeeded' OR (finished_fence = fence AND result <> '' AND (result_object <> '' OR deleted_at > 0))),
  CHECK (status = 'processing' OR lease_until = 0),
  CHECK (deleted_at = 0 OR finished_at > 0)
);
CREATE INDEX jobs_queued ON jobs (dispatched_at, id) WHERE status = 'queued';
CREATE INDEX jobs_leases ON jobs (lease_until) WHERE status = 'processing';
CREATE INDEX jobs_account ON jobs (account_id, created_at, id) WHERE deleted_at = 0;
-- the search for orphans asks for every object in the bucket
CREATE INDEX jobs_result ON jobs (result_object) WHERE result_object <> '';
CREATE INDEX jobs_source ON jobs (source_object);
CREATE INDEX jobs_source_kept ON jobs (finished_at) WHERE finished_at > 0 AND source_ready;

CREATE TABLE uploads (
  id           TEXT PRIMARY KEY,
  account_id   TEXT NOT NULL REFERENCES accounts (id),
  object       TEXT NOT NULL,
  file_name    TEXT NOT NULL,
  content_type TEXT NOT NULL,
  -- the size declared in bytes; 0: none
  size         BIGINT NOT NULL DEFAULT 0 CHECK (size >= 0),
  status       TEXT NOT NULL DEFAULT 'open' CHECK (status IN ('open', 'consumed', 'removed')),
  job_id       TEXT NOT NULL DEFAULT '',
  created_at   BIGINT NOT NULL,
  expires_at   BIGINT NOT NULL,
  CHECK ((status = 'consumed') = (job_id <> ''))
);
CREATE INDEX uploads_object ON uploads (object) WHERE status = 'open';
CREATE INDEX uploads_open ON uploads (expires_at) WHERE status = 'open';

CREATE TABLE idempotency (
  account_id  TEXT NOT NULL REFERENCES accounts (id),
  key         TEXT NOT NULL,
  fingerprint TEXT NOT NULL,
  status      BIGINT NOT NULL,
  body        TEXT NOT NULL,
  expires_at  BIGINT NOT NULL,
  PRIMARY KEY (account_id, key)
);
CREATE INDEX idempotency_expiry ON idempotency (expires_at);

CREATE TABLE holds (
  -- one hold a job: the job's id is the hold's
  job_id     TEXT PRIMARY KEY,
  account_id TEXT NOT NULL REFERENCES accounts (id),
  amount     BIGINT NOT NULL CHECK (amount >= 0),
  state      TEXT NOT NULL CHECK (state IN ('held', 'confirmed', 'released')),
  created_at BIGINT NOT NULL,
  ended_at   BIGINT NOT NULL DEFAULT 0,
  CHECK ((state = 'held') = (ended_at = 0))
);
CREATE INDEX holds_account ON holds (account_id) WHERE state = 'held';

CREATE TABLE entries (
  id         TEXT PRIMARY KEY,
  account_id TEXT NOT NULL REFERENCES accounts (id),
  -- the job's id for reserve, confirm and release; the grant's own reference for a grant
  hold_id    TEXT NOT NULL,
  step       TEXT NOT NULL CHECK (step IN ('grant', 'reserve', 'confirm', 'release')),
  -- what the step adds to posted, frozen and used
  posted     BIGINT NOT NULL,
  frozen     BIGINT NOT NULL,
  used       BIGINT NOT NULL,
  note       TEXT NOT NULL DEFAULT '',
  created_at BIGINT NOT NULL,
  CHECK ((step = 'grant'   AND posted <> 0 AND frozen = 0 AND used = 0)
      OR (step = 'reserve' AND posted = 0 AND frozen >= 0 AND used = 0)
      OR (step = 'confirm' AND posted = frozen AND frozen <= 0 AND used = -posted)
      OR (step = 'release' AND posted = 0 AND frozen <= 0 AND used = 0)),
  UNIQUE (hold_id, step)
);
CREATE UNIQUE INDEX entries_one_end ON entries (hold_id) WHERE step IN ('confirm', 'release');
CREATE INDEX entries_account ON entries (account_id, created_at, id);

-- objects in the bucket that nothing refers to any more, to be removed after not_before; a name that ends in / is a prefix
CREATE TABLE garbage (
  object     TEXT PRIMARY KEY,
  not_before BIGINT NOT NULL
);
CREATE INDEX garbage_due ON garbage (not_before);

-- +goose Down
DROP TABLE garbage;
DROP TABLE entries;
DROP TABLE holds;
DROP TABLE idempotency;
DROP TABLE uploads;
DROP TABLE jobs;
DROP TABLE api_keys;
DROP TABLE accounts;
