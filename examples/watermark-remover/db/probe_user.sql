-- The user whom probes log in as, with credits to take. Run as the owner; does nothing if the user is there:
--   psql -v email=probe@example.com -f probe_user.sql
-- The password is in the application's settings, PROBE_PASSWORD: the database never sees it.
\if :{?email} \else \set email probe@example.com \endif
WITH made AS (
    INSERT INTO users (email, api_token) VALUES (:'email', gen_random_uuid() || '-' || gen_random_uuid())
    ON CONFLICT (email) DO NOTHING RETURNING id
), granted AS (
    INSERT INTO credit_transactions (user_id, type, amount, description) SELECT id, 'bonus', 1000, 'for probes' FROM made
)
INSERT INTO user_credits (user_id, balance) SELECT id, 1000 FROM made;
