-- Where the MCP server is that a proposed call was of, as its request declared it: a label is the
-- caller's own word, and may stand for another server in the next request. Null for other calls.
alter table gates add column server text;

-- Where the MCP servers are that the request of a kept response declared, by their labels, as JSON:
-- what a response proposes may be seen only once it is fetched.
alter table responses add column servers text;
