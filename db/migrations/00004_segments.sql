-- +goose Up
-- the parts of a long video that is being worked on: each is made and stored on its own, by whichever worker; gone when the job has ended
CREATE TABLE segments (
  job_id      TEXT NOT NULL REFERENCES jobs (id),
  number      BIGINT NOT NULL CHECK (number BETWEEN 0 AND 511),
  -- JSON: what the tool must know to make it
  part        TEXT NOT NULL,
  frames      BIGINT NOT NULL CHECK (frames > 0),
  status      TEXT NOT NULL DEFAULT 'queued' CHECK (status IN ('queued', 'running', 'done')),
  worker      TEXT NOT NULL DEFAULT '',
  -- rises at every claim: the right to write
  fence       BIGINT NOT NULL DEFAULT 0 CHECK (fence >= 0),
  lease_until BIGINT NOT NULL DEFAULT 0,
  -- runs that ended by an error or with their worker
  failures    BIGINT NOT NULL DEFAULT 0 CHECK (failures >= 0),
  -- percent of the part
  progress    BIGINT NOT NULL DEFAULT 0 CHECK (progress BETWEEN 0 AND 100),
  object      TEXT NOT NULL DEFAULT '',
  -- JSON: what the tool said of it, for the join
  facts       TEXT NOT NULL DEFAULT '',
  PRIMARY KEY (job_id, number),
  CHECK ((status = 'running') = (lease_until > 0)),
  CHECK ((status = 'done') = (object <> '')),
  CHECK (status = 'queued' OR fence > 0)
);
-- the search for orphans asks for every object in the bucket
CREATE INDEX segments_object ON segments (object) WHERE object <> '';

-- +goose Down
DROP TABLE segments;
