Materialized views, one that is not populated, one on another, with indexes.
--! owner
CREATE MATERIALIZED VIEW totals AS SELECT type, count(*) AS n, sum(amount) AS amount FROM credit_transactions GROUP BY 1;
CREATE UNIQUE INDEX totals_type ON totals (type);
CREATE MATERIALIZED VIEW top AS SELECT type FROM totals WHERE n > 10;
CREATE MATERIALIZED VIEW later AS SELECT 1 AS one WITH NO DATA;
--! up
{up};
DROP MATERIALIZED VIEW top;
REFRESH MATERIALIZED VIEW CONCURRENTLY totals;
--! down
CREATE MATERIALIZED VIEW top AS SELECT type FROM totals WHERE n > 10;
{down}
--! wrong RollbackNotEqual totals_type
DROP INDEX totals_type;
