A protected table whose type only a superuser's extension has: the rehearsal would lack it.
--! root
CREATE EXTENSION xml2; CREATE TYPE mood AS ENUM ('ok'); ALTER EXTENSION xml2 ADD TYPE mood;
ALTER TABLE credit_transactions ADD feels mood;
--! refused Preflight PrivilegeMissing needs table public.credit_transactions
