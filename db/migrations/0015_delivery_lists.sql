-- Lists of deliveries, and nothing kept up that no statement reads by.

-- Those of a whole org, the newest first.
create index deliveries_of_org on deliveries (org_id, id);

drop index raised_alerts;
