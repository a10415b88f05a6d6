Collations of ICU, also one that takes different texts for equal, and of the C library, in columns, indexes and domains.
--! owner
CREATE COLLATION german (provider = icu, locale = 'de-u-co-phonebk');
CREATE COLLATION folded (provider = icu, locale = 'und-u-ks-level2', deterministic = false);
CREATE COLLATION posix FROM "C";
CREATE DOMAIN word AS text COLLATE german;
CREATE TABLE words (id int PRIMARY KEY, de word, any_case text COLLATE folded UNIQUE, raw text COLLATE posix);
INSERT INTO words VALUES (1, 'Ärger', 'Straße', 'b'), (2, 'Zaun', 'ärger', 'B'), (3, 'aera', 'x', 'ä');
--! up
{up};
ALTER TABLE words ALTER COLUMN raw TYPE text COLLATE german;
--! down
ALTER TABLE words ALTER COLUMN raw TYPE text COLLATE posix;
{down}
--! wrong RollbackNotEqual words
UPDATE words SET any_case = upper(any_case) WHERE id = 2;
