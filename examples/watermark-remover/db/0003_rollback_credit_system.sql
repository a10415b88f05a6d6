-- v2 -> v1: the rollback of 0003_simplify_credit_system.sql, which restores the schema.
--
-- Runs inside one transaction of its caller, as the owner of the tables. Balances and transactions written on v2 stay.
-- The tables of v2 go with all that hangs on them; their grants are in credit_transactions as well.

DROP TABLE subscription_credits;
DROP TABLE credit_plans;

ALTER TABLE credit_packages_v1_archive RENAME TO credit_packages;
ALTER TABLE credit_purchases_v1_archive RENAME TO credit_purchases;
ALTER TABLE user_credits RENAME COLUMN purchased_credits_v1_archive TO purchased_credits;

-- One row for each check; the rollback is good if every row is ok.
CREATE OR REPLACE FUNCTION verify_rollback() RETURNS TABLE (check_name text, ok boolean, detail text)
LANGUAGE plpgsql STABLE AS $$
DECLARE
    structure_ok boolean;
BEGIN
    RETURN QUERY
    SELECT 'table ' || name || ' exists', to_regclass(name) IS NOT NULL, coalesce(to_regclass(name)::text, 'missing')
    FROM unnest(ARRAY ['users', 'user_credits', 'credit_transactions', 'credit_packages', 'credit_purchases', 'subscriptions']) AS name;

    RETURN QUERY
    SELECT 'table ' || name || ' is gone', to_regclass(name) IS NULL, coalesce(to_regclass(name)::text, 'gone')
    FROM unnest(ARRAY ['credit_plans', 'subscription_credits', 'credit_packages_v1_archive', 'credit_purchases_v1_archive']) AS name;

    RETURN QUERY
    SELECT 'columns of user_credits', columns = ARRAY ['user_id', 'balance', 'purchased_credits', 'updated_at'], array_to_string(columns, ', ')
    FROM (SELECT array_agg(attname::text ORDER BY attnum) AS columns FROM pg_attribute
          WHERE attrelid = to_regclass('user_credits') AND attnum > 0 AND NOT attisdropped) AS found;

    -- The checks below read the tables, so they can only run when the tables are there.
    SELECT bool_and(to_regclass(name) IS NOT NULL) INTO structure_ok
    FROM unnest(ARRAY ['users', 'user_credits', 'credit_packages', 'credit_purchases']) AS name;
    IF NOT structure_ok THEN
        RETURN;
    END IF;

    RETURN QUERY
    SELECT 'foreign keys are valid', count(*) = 5 AND bool_and(convalidated), count(*) || ' of 5 foreign keys'
    FROM pg_constraint
    WHERE contype = 'f' AND conrelid IN ('user_credits'::regclass, 'credit_transactions'::regclass, 'credit_purchases'::regclass, 'subscriptions'::regclass)
      AND confrelid IN ('users'::regclass, 'credit_packages'::regclass);

    RETURN QUERY
    SELECT 'balances belong to users', count(*) = 0, count(*) || ' without a user'
    FROM user_credits AS c WHERE NOT EXISTS (SELECT FROM users AS u WHERE u.id = c.user_id);

    RETURN QUERY
    SELECT 'balances are not negative', count(*) = 0, count(*) || ' negative'
    FROM user_credits AS c WHERE c.balance < 0;

    RETURN QUERY
    SELECT 'purchases have users and packages', count(*) FILTER (WHERE u.id IS NULL OR p.id IS NULL) = 0,
           count(*) FILTER (WHERE u.id IS NULL OR p.id IS NULL) || ' of ' || count(*) || ' without'
    FROM credit_purchases AS b LEFT JOIN users AS u ON u.id = b.user_id LEFT JOIN credit_packages AS p ON p.id = b.package_id;

    RETURN QUERY
    SELECT 'packages are back', count(*) > 0 OR NOT EXISTS (SELECT FROM credit_purchases), count(*) || ' packages'
    FROM credit_packages;
END
$$;
