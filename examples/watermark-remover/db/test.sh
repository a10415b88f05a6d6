#!/usr/bin/env bash
# Up, writes on v2, down, and up again, on a throwaway PostgreSQL 15: ./test.sh [users] [transactions]
# Exits 0 only if the schema after the rollback equals the one before and no credit is lost.
set -euo pipefail

users=${1:-1000} transactions=${2:-10000}
bin=${PG_BIN:-/usr/lib/postgresql/15/bin}
export PGOPTIONS="-c client_min_messages=warning"
here=$(cd "$(dirname "$0")" && pwd)
dir=$(mktemp -d)
as_postgres() { if [ "$(id -u)" = 0 ]; then setpriv --reuid postgres --regid postgres --clear-groups -- "$@"; else "$@"; fi; }
cleanup() {
    [ -f "$dir/data/postmaster.pid" ] && as_postgres "$bin/pg_ctl" -D "$dir/data" -m immediate -w stop >/dev/null
    rm -rf "$dir"
}
trap cleanup EXIT

chmod 755 "$dir"
if [ "$(id -u)" = 0 ]; then chown postgres "$dir"; fi
cd "$dir"
as_postgres "$bin/initdb" -D "$dir/data" -U postgres -A trust --no-sync >/dev/null
as_postgres "$bin/pg_ctl" -D "$dir/data" -w -l "$dir/log" -o "-c listen_addresses='' -c fsync=off -k $dir" start >/dev/null

sql() { "$bin/psql" -X -q -At -v ON_ERROR_STOP=1 -h "$dir" -U "$1" -d watermark_remover "${@:2}"; }
schema() { "$bin/pg_dump" -s -h "$dir" -U postgres watermark_remover | grep -vE '^(--|.(un)?restrict )' >"$1"; }
fail() { echo "FAILED: $*" >&2; exit 1; }
equal() { [ "$2" = "$3" ] || fail "$1: got '$2', expected '$3'"; }
balances() { sql owner -c "SELECT md5(string_agg(user_id || ':' || balance, ',' ORDER BY user_id)) FROM user_credits"; }
archive() { sql owner -c "SELECT md5(string_agg(t::text, ',' ORDER BY id)) FROM $1 AS t"; }

"$bin/psql" -X -q -h "$dir" -U postgres -d postgres \
    -c 'CREATE ROLE owner LOGIN' -c 'CREATE ROLE watermark LOGIN' -c 'CREATE DATABASE watermark_remover OWNER owner'
sql owner -1 -f "$here/schema_v1.sql"
echo "generate $users users, $transactions transactions"
time sql owner -1 -v users="$users" -v transactions="$transactions" -f "$here/generate.sql" | tee "$dir/generated"
equal 'balances which do not fit' "$(cut -d'|' -f5 "$dir/generated" | tail -1)" 0
sql owner -v app_role=watermark -f "$here/grant_app.sql"
for _ in first again; do sql owner -v email=probe@example.com -f "$here/probe_user.sql"; done
equal 'probe user, balance and transactions' \
    "$(sql owner -c "SELECT count(*), sum(balance), sum(amount) FROM users AS u JOIN user_credits AS c ON c.user_id = u.id JOIN credit_transactions AS t ON t.user_id = u.id WHERE email = 'probe@example.com'")" '1|1000|1000'

# What an operator may have put on the tables: neither SQL may stumble over it, nor lose it.
sql owner <<'SQL'
CREATE SCHEMA credit_migration;
CREATE TABLE credit_migration.changed_users (user_id bigint);
GRANT USAGE ON SCHEMA credit_migration TO watermark;
GRANT INSERT ON credit_migration.changed_users TO watermark;
CREATE FUNCTION credit_migration.block_writes() RETURNS trigger LANGUAGE plpgsql AS
$$BEGIN IF current_setting('test.blocked', true) = 'on' THEN RAISE EXCEPTION 'writes are paused' USING ERRCODE = '25006'; END IF; RETURN NULL; END$$;
CREATE FUNCTION credit_migration.track_changes() RETURNS trigger LANGUAGE plpgsql AS
$$BEGIN INSERT INTO credit_migration.changed_users VALUES (NEW.user_id); RETURN NULL; END$$;
CREATE TRIGGER track_changes AFTER INSERT OR UPDATE ON user_credits FOR EACH ROW EXECUTE FUNCTION credit_migration.track_changes();
DO $$
DECLARE name text;
BEGIN
    FOREACH name IN ARRAY ARRAY['user_credits', 'credit_transactions', 'credit_packages', 'credit_purchases', 'subscriptions'] LOOP
        EXECUTE format('CREATE TRIGGER block_writes BEFORE INSERT OR UPDATE OR DELETE OR TRUNCATE ON %I FOR EACH STATEMENT EXECUTE FUNCTION credit_migration.block_writes()', name);
        EXECUTE format('ALTER TABLE %I ENABLE ALWAYS TRIGGER block_writes', name);
    END LOOP;
END$$;
SQL

gone="SELECT count(*) FROM information_schema.tables WHERE table_name IN ('credit_packages', 'credit_purchases')"
schema before; before=$(balances); packages=$(archive credit_packages); purchases=$(archive credit_purchases)

for round in 1 2; do
    echo "round $round: up"
    time sql owner -1 -c "SET LOCAL test.blocked = 'on'" -f "$here/0003_simplify_credit_system.sql"
    equal 'tables that must be gone' "$(sql owner -c "$gone")" 0
    equal 'balances after the migration' "$(balances)" "$before"

    # As the application's role: what v2 does.
    sql watermark -1 <<'SQL'
INSERT INTO subscriptions (user_id, plan) VALUES (2, 'pro') ON CONFLICT (user_id) DO UPDATE SET plan = excluded.plan;
INSERT INTO credit_transactions (user_id, type, amount, description) VALUES (2, 'subscription_grant', 500, 'v2'), (3, 'usage', -1, 'v2');
INSERT INTO subscription_credits (user_id, plan, credits) SELECT 2, plan, monthly_credits FROM credit_plans WHERE plan = 'pro';
UPDATE user_credits SET balance = balance + 500 WHERE user_id = 2;
UPDATE user_credits SET balance = balance - 1 WHERE user_id = 3;
SQL
    written=$(balances)
    [ "$written" != "$before" ] || fail 'the writes on v2 changed nothing'

    echo "round $round: down"
    time sql owner -1 -c "SET LOCAL test.blocked = 'on'" -f "$here/0003_rollback_credit_system.sql"
    time sql owner -c 'SELECT * FROM verify_rollback()' | tee checks
    equal 'checks that are not ok' "$(grep -vc '|t|' checks || true)" 0
    equal 'balances after the rollback' "$(balances)" "$written"
    equal 'packages' "$(archive credit_packages)" "$packages"
    equal 'purchases' "$(archive credit_purchases)" "$purchases"
    equal 'transactions written on v2' "$(sql owner -c "SELECT count(*) FROM credit_transactions WHERE description = 'v2'")" $((2 * round))
    before=$written
done
sql owner -c 'DROP FUNCTION verify_rollback()' # the only thing that may be new
schema after
diff before after || fail 'the schema differs after the rollback'
echo "passed: schema equal after up and down, twice; balances, transactions, packages and purchases kept"
