A database as Hibernate makes it: hibernate_sequence, names in upper and lower case, checks in place of enums, Flyway's log.
--! alone
--! owner
CREATE SEQUENCE hibernate_sequence START 1 INCREMENT 50;
CREATE TABLE flyway_schema_history (installed_rank integer NOT NULL PRIMARY KEY, version character varying(50),
    description character varying(200) NOT NULL, script character varying(1000) NOT NULL, checksum integer,
    installed_on timestamp without time zone DEFAULT now() NOT NULL, success boolean NOT NULL);
CREATE TABLE "AppUser" (id int8 not null, version int4 not null, "displayName" varchar(255), primary key (id));
CREATE TABLE account (id int8 not null, user_id int8 not null, credit_balance numeric(38, 2) not null,
    status varchar(255) not null check (status in ('ACTIVE', 'LOCKED')), primary key (id));
ALTER TABLE account ADD CONSTRAINT "UK_8lwkv5w4" UNIQUE (user_id);
ALTER TABLE account ADD CONSTRAINT "FKra7xoi9wtlcq07tmoxxe5jrh4" FOREIGN KEY (user_id) REFERENCES "AppUser";
CREATE TABLE ledger_entry (id int8 not null, owner_id int8 not null, entry_type varchar(31) not null,
    value numeric(38, 2) not null, booked timestamp(6) with time zone not null, payload oid, primary key (id));
INSERT INTO flyway_schema_history VALUES (1, '1', 'init', 'V1__init.sql', 42, now(), true);
INSERT INTO "AppUser" SELECT n, 0, 'U' || n FROM generate_series(1, 30) n;
INSERT INTO account SELECT nextval('hibernate_sequence'), id, id * 3, 'ACTIVE' FROM "AppUser";
INSERT INTO ledger_entry SELECT nextval('hibernate_sequence'), id, 'PURCHASE', id * 3, now() FROM "AppUser";
GRANT SELECT, INSERT, UPDATE ON ALL TABLES IN SCHEMA public TO app_{n};
GRANT USAGE ON ALL SEQUENCES IN SCHEMA public TO app_{n};
--! plan
{"credits": {"balances": {"table": "account", "balanceColumn": "credit_balance", "purchasedColumn": null},
             "transactions": {"table": "ledger_entry", "userColumn": "owner_id", "typeColumn": "entry_type",
                              "amountColumn": "value", "createdAtColumn": "booked"}},
 "migration": {"tablesGone": [], "verifyDown": "SELECT count(*) = 30 FROM account"}}
--! up
ALTER SEQUENCE hibernate_sequence RENAME TO account_seq;
INSERT INTO flyway_schema_history VALUES (2, '2', 'plans', 'V2__plans.sql', 43, now(), true);
--! down
DELETE FROM flyway_schema_history WHERE installed_rank = 2;
ALTER SEQUENCE account_seq RENAME TO hibernate_sequence;
--! wrong RollbackNotEqual hibernate_sequence
SELECT setval('hibernate_sequence', 1);
