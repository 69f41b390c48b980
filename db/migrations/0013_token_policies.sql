-- What an agent's token permits its runs to be under: names of policies and labels of versions such
-- as prod-agents/v4, parted by spaces. Null for whatever its agent may use.
alter table tokens add column policies text check (policies <> '');

-- What is remembered of a token never outlives the fact: another list takes another token.
create trigger policies_of_token_stay before update of policies on tokens
when old.policies is not new.policies
begin
  select raise(abort, 'what a token permits is fixed when it is made');
end;
