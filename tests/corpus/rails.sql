A database as Rails makes it: schema_migrations, timestamp(6) without time zone, bigserial keys, polymorphic references.
--! alone
--! owner
CREATE TABLE schema_migrations (version character varying NOT NULL PRIMARY KEY);
CREATE TABLE ar_internal_metadata (key character varying NOT NULL PRIMARY KEY, value character varying,
    created_at timestamp(6) without time zone NOT NULL, updated_at timestamp(6) without time zone NOT NULL);
CREATE TABLE users (id bigserial PRIMARY KEY, email character varying DEFAULT '' NOT NULL,
    encrypted_password character varying DEFAULT '' NOT NULL, settings jsonb DEFAULT '{}' NOT NULL,
    created_at timestamp(6) without time zone NOT NULL, updated_at timestamp(6) without time zone NOT NULL);
CREATE UNIQUE INDEX index_users_on_email ON users USING btree (email);
CREATE TABLE wallets (id bigserial PRIMARY KEY, user_id bigint NOT NULL, credits integer DEFAULT 0 NOT NULL,
    lock_version integer DEFAULT 0 NOT NULL,
    created_at timestamp(6) without time zone NOT NULL, updated_at timestamp(6) without time zone NOT NULL,
    CONSTRAINT fk_rails_732f6628c4 FOREIGN KEY (user_id) REFERENCES users(id));
CREATE UNIQUE INDEX index_wallets_on_user_id ON wallets (user_id);
CREATE TABLE wallet_entries (id bigserial PRIMARY KEY, user_id bigint NOT NULL, kind character varying NOT NULL,
    source_type character varying, source_id bigint, amount integer NOT NULL,
    created_at timestamp(6) without time zone NOT NULL);
CREATE INDEX index_wallet_entries_on_source ON wallet_entries (source_type, source_id);
INSERT INTO schema_migrations VALUES ('20240101000000'), ('20240102000000');
INSERT INTO ar_internal_metadata VALUES ('environment', 'production', now(), now());
INSERT INTO users (email, created_at, updated_at) SELECT 'u' || n, now(), now() FROM generate_series(1, 50) n;
INSERT INTO wallets (user_id, credits, created_at, updated_at) SELECT id, id * 10, now(), now() FROM users;
INSERT INTO wallet_entries (user_id, kind, source_type, source_id, amount, created_at)
    SELECT id, 'purchase', 'Order', id, id * 10, now() FROM users;
GRANT SELECT, INSERT, UPDATE ON ALL TABLES IN SCHEMA public TO app_{n};
GRANT USAGE ON ALL SEQUENCES IN SCHEMA public TO app_{n};
--! plan
{"credits": {"balances": {"table": "wallets", "balanceColumn": "credits", "purchasedColumn": null},
             "transactions": {"table": "wallet_entries", "typeColumn": "kind"}},
 "migration": {"tablesGone": [], "verifyDown": "SELECT count(*) = 50 FROM wallets"}}
--! up
ALTER TABLE "wallets" ADD "plan" character varying DEFAULT 'basic' NOT NULL;
CREATE TABLE "plans" ("id" bigserial primary key, "name" character varying, "created_at" timestamp(6) NOT NULL);
CREATE INDEX "index_wallets_on_plan" ON "wallets" ("plan");
GRANT SELECT, INSERT, UPDATE ON "plans" TO app_{n};
INSERT INTO "schema_migrations" ("version") VALUES ('20250101000000');
--! down
DELETE FROM "schema_migrations" WHERE "version" = '20250101000000';
DROP TABLE "plans";
ALTER TABLE "wallets" DROP COLUMN "plan";
--! wrong RollbackNotEqual schema_migrations
INSERT INTO "schema_migrations" ("version") VALUES ('20250101000000');
