-- The tier of service that a provider gives to calls which ask for none, or for the one that is set
-- there: what they are held at.
alter table provider_keys add column service_tier text not null default 'default';
