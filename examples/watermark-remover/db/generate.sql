-- Deterministic data for schema_v1.sql: the same numbers give the same rows.
--   psql -v ON_ERROR_STOP=1 -1 -v users=100000 -v transactions=1000000 -f generate.sql
-- (those are the defaults). Transaction n belongs to user 1 + (n - 1) % users; it is that user's transaction number
-- round = (n - 1) / users. Rounds repeat in tens, each ten starts with a grant that covers all usage up to the next one,
-- so no balance is ever below zero. For each user: balance = sum of amounts, purchased_credits = sum of purchases.
-- Tokens are predictable: never use this for anything but tests.
\if :{?users} \else \set users 100000 \endif
\if :{?transactions} \else \set transactions 1000000 \endif

INSERT INTO users (id, email, api_token, created_at)
SELECT n, 'user' || n || '@example.com', md5('watermark-remover token ' || n),
       timestamptz '2024-01-01 00:00:00+00' + n * interval '1 second'
FROM generate_series(1, :users) AS n;
SELECT setval(pg_get_serial_sequence('users', 'id'), :users) \g /dev/null

INSERT INTO credit_packages (name, credits, price_cents)
VALUES ('small', 50, 500), ('medium', 120, 1000), ('large', 300, 2000);

INSERT INTO credit_transactions (user_id, type, amount, description, created_at)
SELECT user_id, type,
       CASE type
           WHEN 'subscription_grant' THEN 100
           WHEN 'bonus' THEN 20
           WHEN 'refund' THEN 5
           WHEN 'purchase' THEN (ARRAY [50, 120, 300])[1 + user_id % 3]
           ELSE -1 - (user_id * 31 + round * 17) % 9
       END,
       type || ' ' || round,
       timestamptz '2024-06-01 00:00:00+00' + n * interval '10 seconds'
FROM (
    SELECT n, 1 + (n - 1) % :users AS user_id, (n - 1) / :users AS round,
           CASE
               WHEN (n - 1) / :users % 10 = 0 THEN 'subscription_grant'
               WHEN (n - 1) / :users % 10 = 4 AND n % :users % 4 = 1 THEN 'purchase'
               WHEN (n - 1) / :users % 10 = 6 AND n % :users % 10 = 2 THEN 'bonus'
               WHEN (n - 1) / :users % 10 = 8 AND n % :users % 20 = 3 THEN 'refund'
               ELSE 'usage'
           END AS type
    FROM generate_series(1, :transactions ::bigint) AS n
) AS planned;

INSERT INTO credit_purchases (user_id, package_id, credits, price_cents, purchased_at)
SELECT t.user_id, p.id, t.amount, p.price_cents, t.created_at
FROM credit_transactions AS t JOIN credit_packages AS p ON p.credits = t.amount
WHERE t.type = 'purchase'
ORDER BY t.id;

INSERT INTO user_credits (user_id, balance, purchased_credits, updated_at)
SELECT u.id, coalesce(sum(t.amount), 0), coalesce(sum(t.amount) FILTER (WHERE t.type = 'purchase'), 0),
       coalesce(max(t.created_at), u.created_at)
FROM users AS u LEFT JOIN credit_transactions AS t ON t.user_id = u.id
GROUP BY u.id
ORDER BY u.id;

INSERT INTO subscriptions (user_id, plan, started_at, updated_at)
SELECT id, (ARRAY ['basic', 'pro', 'enterprise'])[1 + id % 3], created_at, created_at
FROM users WHERE id % 2 = 1
ORDER BY id;

\echo users, transactions, purchases, total balance, users whose balance does not fit:
SELECT (SELECT count(*) FROM users), (SELECT count(*) FROM credit_transactions), (SELECT count(*) FROM credit_purchases),
       sum(c.balance), count(*) FILTER (WHERE c.balance IS DISTINCT FROM coalesce(t.amount, 0)
                                           OR c.purchased_credits IS DISTINCT FROM coalesce(p.credits, 0))
FROM user_credits AS c
LEFT JOIN (SELECT user_id, sum(amount) AS amount FROM credit_transactions GROUP BY user_id) AS t USING (user_id)
LEFT JOIN (SELECT user_id, sum(credits) AS credits FROM credit_purchases GROUP BY user_id) AS p USING (user_id);
