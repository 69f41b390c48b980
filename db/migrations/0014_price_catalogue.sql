-- Price lists that were fetched, what of them calls are charged by, and how the fetching goes.

create table catalogues (
  version text primary key,
  -- Where it was fetched, without the query of the URL.
  source text not null,
  fetched_at integer not null,
  -- A JSON array of what it lists.
  document text not null,
  -- Since when no source has it in force; what was held by its prices is settled by them, too.
  replaced_at integer
) strict, without rowid;

create table price_sources (
  source text primary key,
  -- What is in force where this source is configured; null until it was fetched once.
  version text references catalogues (version),
  etag text,
  -- When it is due.
  next_at integer not null,
  -- How many lower prices were not taken over, and the first of their ids as a JSON array.
  held_back_count integer not null default 0,
  held_back text not null default '[]',
  -- Why the last attempt came to nothing; null after one that did not.
  failure text
) strict, without rowid;

create index price_sources_in_force on price_sources (version);
