-- v1 -> v2: credits come from the subscription's plan; packages for single purchases are given up.
--
-- Runs inside one transaction of its caller, as the owner of the tables. It renames and creates, and copies no row of any
-- user: its cost does not depend on the number of users. Nothing is lost: what v2 no longer knows stays under another
-- name (..._v1_archive), with its rows, indexes, constraints, grants and triggers, so that the rollback only renames back.

-- Left by an earlier rollback; it would judge the wrong schema from now on.
DROP FUNCTION IF EXISTS verify_rollback();

ALTER TABLE user_credits RENAME COLUMN purchased_credits TO purchased_credits_v1_archive;
ALTER TABLE credit_purchases RENAME TO credit_purchases_v1_archive;
ALTER TABLE credit_packages RENAME TO credit_packages_v1_archive;

CREATE TABLE credit_plans (
    plan            text PRIMARY KEY,
    monthly_credits bigint NOT NULL CHECK (monthly_credits > 0)
);
INSERT INTO credit_plans (plan, monthly_credits) VALUES ('basic', 100), ('pro', 500), ('enterprise', 2000);

-- One row for each grant made by v2; the credits themselves are in credit_transactions, as before.
-- It refers to user_credits, which the rename has locked already, and not to users: logins must not wait for this.
CREATE TABLE subscription_credits (
    id         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    user_id    bigint NOT NULL REFERENCES user_credits (user_id),
    plan       text NOT NULL REFERENCES credit_plans (plan),
    credits    bigint NOT NULL CHECK (credits > 0),
    granted_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX subscription_credits_user_idx ON subscription_credits (user_id);

-- Roles with rights on user_credits get the same rights on the new tables: no role is named here.
DO $$
DECLARE
    entry record;
BEGIN
    FOR entry IN
        SELECT acl.privilege_type AS privilege,
               CASE WHEN acl.grantee = 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(acl.grantee)) END AS grantee
        FROM pg_class AS c, aclexplode(c.relacl) AS acl
        WHERE c.oid = 'user_credits'::regclass AND acl.grantee <> c.relowner
    LOOP
        EXECUTE format('GRANT %s ON credit_plans, subscription_credits TO %s', entry.privilege, entry.grantee);
    END LOOP;
END
$$;
