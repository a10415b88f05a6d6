-- What a copy of the current database goes without when the current role restores it, and which owners it gives.
-- $1: protected tables; $2: extensions that the role may not create; pg_catalog alone is in the search path.
-- 'RIGHT' is the right that allows SET ROLE, MAJOR the server's version.
WITH RECURSIVE me AS (
    SELECT oid, rolsuper AS super FROM pg_roles WHERE rolname = current_user
), protected (oid) AS (
    SELECT unnest($1::oid[])
    UNION SELECT i.inhrelid FROM pg_inherits AS i JOIN protected AS p ON i.inhparent = p.oid
), member (class, oid) AS (
    SELECT classid, objid FROM pg_depend WHERE deptype = 'e' AND refclassid = 'pg_extension'::regclass
), constructor (oid) AS (
    -- The server makes the functions of a range type itself.
    SELECT objid FROM pg_depend WHERE classid = 'pg_proc'::regclass AND deptype = 'i'
), owned (class, oid, schema, owner, acl, usual) AS (
    SELECT 'pg_class'::regclass::oid, oid, relnamespace, relowner, relacl,
           acldefault(CASE relkind WHEN 'S' THEN 's' ELSE 'r' END::"char", relowner)
    FROM pg_class WHERE relkind IN ('r', 'p', 'v', 'm', 'f', 'S') AND relpersistence <> 't'
    UNION ALL SELECT 'pg_proc'::regclass, oid, pronamespace, proowner, proacl, acldefault('f', proowner) FROM pg_proc
    WHERE oid NOT IN (SELECT oid FROM constructor)
    UNION ALL SELECT 'pg_type'::regclass, t.oid, typnamespace, typowner, typacl, acldefault('T', typowner)
    FROM pg_type AS t LEFT JOIN pg_class AS c ON c.oid = typrelid
    WHERE coalesce(relkind = 'c', true) AND typtype <> 'm' AND typinput <> 'array_in'::regproc
    UNION ALL SELECT 'pg_namespace'::regclass, oid, NULL, nspowner, nspacl, acldefault('n', nspowner) FROM pg_namespace
    UNION ALL SELECT 'pg_language'::regclass, oid, NULL, lanowner, lanacl, acldefault('l', lanowner) FROM pg_language
    UNION ALL SELECT 'pg_foreign_server'::regclass, oid, NULL, srvowner, srvacl, acldefault('S', srvowner)
    FROM pg_foreign_server
    UNION ALL SELECT 'pg_foreign_data_wrapper'::regclass, oid, NULL, fdwowner, fdwacl, acldefault('F', fdwowner)
    FROM pg_foreign_data_wrapper
    UNION ALL SELECT 'pg_largeobject'::regclass, oid, NULL, lomowner, lomacl, acldefault('L', lomowner)
    FROM pg_largeobject_metadata
    UNION ALL SELECT 'pg_operator'::regclass, oid, oprnamespace, oprowner, NULL, NULL FROM pg_operator
    UNION ALL SELECT 'pg_opclass'::regclass, oid, opcnamespace, opcowner, NULL, NULL FROM pg_opclass
    UNION ALL SELECT 'pg_opfamily'::regclass, oid, opfnamespace, opfowner, NULL, NULL FROM pg_opfamily
    UNION ALL SELECT 'pg_collation'::regclass, oid, collnamespace, collowner, NULL, NULL FROM pg_collation
    UNION ALL SELECT 'pg_conversion'::regclass, oid, connamespace, conowner, NULL, NULL FROM pg_conversion
    UNION ALL SELECT 'pg_ts_dict'::regclass, oid, dictnamespace, dictowner, NULL, NULL FROM pg_ts_dict
    UNION ALL SELECT 'pg_ts_config'::regclass, oid, cfgnamespace, cfgowner, NULL, NULL FROM pg_ts_config
    UNION ALL SELECT 'pg_statistic_ext'::regclass, oid, stxnamespace, stxowner, NULL, NULL FROM pg_statistic_ext
    UNION ALL SELECT 'pg_event_trigger'::regclass, oid, NULL, evtowner, NULL, NULL FROM pg_event_trigger
    UNION ALL SELECT 'pg_publication'::regclass, oid, NULL, pubowner, NULL, NULL FROM pg_publication
), superuser_only (class, oid) AS (
    SELECT 'pg_event_trigger'::regclass::oid, oid FROM pg_event_trigger
    UNION ALL SELECT 'pg_language'::regclass, oid FROM pg_language
    UNION ALL SELECT 'pg_proc'::regclass, p.oid FROM pg_proc AS p JOIN pg_language AS l ON l.oid = prolang
    WHERE NOT lanpltrusted AND prokind <> 'a' AND p.oid NOT IN (SELECT oid FROM constructor)
    UNION ALL SELECT 'pg_type'::regclass, oid FROM pg_type
    WHERE typtype IN ('b', 'p') AND typinput <> 'array_in'::regproc
    UNION ALL SELECT 'pg_cast'::regclass, oid FROM pg_cast
    WHERE castmethod = 'b' OR castsource < 16384 AND casttarget < 16384
    UNION ALL SELECT 'pg_opclass'::regclass, oid FROM pg_opclass
    UNION ALL SELECT 'pg_opfamily'::regclass, oid FROM pg_opfamily
    UNION ALL SELECT 'pg_am'::regclass, oid FROM pg_am
    UNION ALL SELECT 'pg_ts_parser'::regclass, oid FROM pg_ts_parser
    UNION ALL SELECT 'pg_ts_template'::regclass, oid FROM pg_ts_template
    UNION ALL SELECT 'pg_foreign_data_wrapper'::regclass, oid FROM pg_foreign_data_wrapper
), root (class, oid, kind) AS (
    -- Numbers from 16384 on are those of users.
    SELECT s.class, s.oid, 'Superuser' FROM superuser_only AS s
    WHERE s.oid >= 16384 AND NOT (SELECT super FROM me)
      AND NOT EXISTS (SELECT FROM member AS m WHERE m.class = s.class AND m.oid = s.oid)
    UNION ALL SELECT 'pg_default_acl'::regclass, oid, 'DefaultPrivileges' FROM pg_default_acl
    WHERE NOT pg_has_role(defaclrole, 'USAGE')
    UNION ALL SELECT 'pg_extension'::regclass, oid, 'Extension' FROM pg_extension WHERE extname::text = ANY ($2::text[])
    UNION ALL SELECT 'pg_publication'::regclass, oid, 'Publication' FROM pg_publication
), tree (class, oid, kind, rootclass, root) AS (
    SELECT class, oid, kind, class, oid FROM root
    UNION SELECT d.class, d.oid, CASE WHEN d.type = 'e' THEN 'Member' ELSE 'Dependent' END, t.rootclass, t.root
    FROM tree AS t, LATERAL (
        -- What needs it.
        SELECT classid, objid, deptype FROM pg_depend WHERE refclassid = t.class AND refobjid = t.oid
        -- Of what it is a part: the view of a rule, the table of a default or check.
        UNION ALL SELECT refclassid, refobjid, deptype FROM pg_depend AS p
        WHERE p.classid = t.class AND p.objid = t.oid
          AND (deptype = 'i' OR deptype = 'a' AND (t.class = 'pg_attrdef'::regclass
               OR t.class = 'pg_constraint'::regclass
                  AND (SELECT contype IN ('c', 'n') FROM pg_constraint AS k WHERE k.oid = t.oid)))
    ) AS d (class, oid, type)
    WHERE t.kind <> 'Publication'
), absent (class, oid, kind, rootclass, root) AS (
    SELECT DISTINCT ON (class, oid) class, oid, kind, rootclass, root FROM tree
    ORDER BY class, oid, kind = 'Dependent', kind = 'Member' DESC, rootclass, root
), part (class, oid, relation, name) AS (
    SELECT 'pg_trigger'::regclass::oid, oid, tgrelid, tgname FROM pg_trigger
    UNION ALL SELECT 'pg_policy'::regclass, oid, polrelid, polname FROM pg_policy
    UNION ALL SELECT 'pg_constraint'::regclass, oid, conrelid, conname FROM pg_constraint WHERE conrelid <> 0
    UNION ALL SELECT 'pg_rewrite'::regclass, oid, ev_class, rulename FROM pg_rewrite
), kept AS (
    SELECT o.*, n.nspname IS NOT NULL AS is_public,
           -- The number of a large object is the user's own choice.
           m.oid IS NOT NULL
           OR o.oid < 16384 AND n.nspname IS NULL AND o.class <> 'pg_largeobject'::regclass AS given_with
    FROM owned AS o LEFT JOIN absent AS a ON a.class = o.class AND a.oid = o.oid
    LEFT JOIN member AS m ON m.class = o.class AND m.oid = o.oid
    LEFT JOIN pg_namespace AS n ON o.class = 'pg_namespace'::regclass AND n.oid = o.oid AND n.nspname = 'public'
    WHERE a.oid IS NULL AND 'information_schema'::regnamespace NOT IN (coalesce(o.schema, 0), o.oid)
), granted (class, oid, number, grantor) AS (
    -- By a role that is not the owner: only a superuser may act as it.
    SELECT k.class, k.oid, 0, min(a.grantor) FROM kept AS k, aclexplode(k.acl) AS a
    WHERE NOT given_with AND a.grantor NOT IN (k.owner, (SELECT oid FROM pg_roles WHERE rolname = session_user))
    GROUP BY 1, 2
    UNION ALL SELECT k.class, k.oid, c.attnum, min(a.grantor)
    FROM kept AS k JOIN pg_attribute AS c ON k.class = 'pg_class'::regclass AND c.attrelid = k.oid AND c.attnum > 0,
         aclexplode(c.attacl) AS a
    WHERE NOT given_with AND a.grantor NOT IN (k.owner, (SELECT oid FROM pg_roles WHERE rolname = session_user))
    GROUP BY 1, 2, 3
    -- On what the server or an extension brings.
    UNION ALL SELECT k.class, k.oid, 0, k.owner FROM kept AS k LEFT JOIN pg_init_privs AS i
         ON i.classoid = k.class AND i.objoid = k.oid AND i.objsubid = 0
    WHERE (given_with AND NOT pg_has_role(k.owner, 'USAGE') OR is_public AND MAJOR < 15) AND k.acl IS NOT NULL
      AND (SELECT array_agg(a::text ORDER BY a::text) FROM unnest(k.acl) AS a)
          <> (SELECT array_agg(a::text ORDER BY a::text) FROM unnest(coalesce(i.initprivs, k.usual)) AS a)
), found (kind, class, oid, number, rootclass, root, grantor) AS (
    SELECT kind, class, oid, 0, rootclass, root, NULL::oid FROM absent
    -- The copy's owner may grant what others have granted on the original.
    UNION ALL SELECT DISTINCT ON (g.class, g.oid, number)
           CASE WHEN g.class IN ('pg_class'::regclass, 'pg_namespace'::regclass)
                     AND NOT given_with AND NOT (is_public AND MAJOR < 15) THEN 'Granted' ELSE 'Grant' END,
           g.class, g.oid, number, NULL, NULL, grantor
    FROM granted AS g JOIN kept AS k ON k.class = g.class AND k.oid = g.oid
    -- From version 15 on the database's owner has the schema public, and may give it away. A member that may act as
    -- the owner without inheriting from it gives, too: the copy then refuses what the original does.
    UNION ALL SELECT CASE WHEN pg_has_role(owner, 'RIGHT') AND NOT (is_public AND MAJOR < 15)
                          AND (schema IS NULL OR has_schema_privilege(owner, schema, 'CREATE'))
                     THEN 'Given' ELSE 'Owner' END, class, oid, 0, NULL, NULL, NULL
    FROM kept AS k
    WHERE NOT given_with AND owner <> (SELECT oid FROM me)
      AND NOT (is_public AND (pg_get_userbyid(owner) = 'pg_database_owner' OR owner = 10 AND MAJOR < 15))
      AND NOT (class = 'pg_class'::regclass AND EXISTS (
               -- The sequence of a column goes with its table.
               SELECT FROM pg_depend AS d JOIN pg_class AS s ON s.oid = d.objid AND s.relkind = 'S'
               WHERE d.classid = k.class AND d.objid = k.oid AND d.refclassid = k.class AND d.deptype IN ('a', 'i')))
    -- In the copy it belongs to who creates it, always. Only SQL that alters it meets the difference.
    UNION ALL SELECT 'Owner', 'pg_extension'::regclass, e.oid, 0, NULL, NULL, NULL
    FROM pg_extension AS e LEFT JOIN absent AS a ON a.class = 'pg_extension'::regclass AND a.oid = e.oid
    WHERE e.oid >= 16384 AND a.oid IS NULL AND NOT pg_has_role(extowner, 'USAGE')
)
SELECT f.kind, f.class, f.oid,
       f.kind NOT IN ('Member', 'Given', 'Granted') AND NOT (f.kind = 'Owner' AND f.class = 'pg_extension'::regclass) AND (f.kind <> 'Dependent' OR NOT EXISTS (
           SELECT FROM pg_depend AS d JOIN absent AS a ON a.class = d.refclassid AND a.oid = d.refobjid
           WHERE d.classid = f.class AND d.objid = f.oid AND d.deptype IN ('a', 'i'))) AS shown,
       f.kind = 'Dependent' AND (
           f.class = 'pg_class'::regclass AND f.oid IN (SELECT oid FROM protected) OR EXISTS (
           SELECT FROM pg_depend AS d JOIN protected AS p ON p.oid = d.refobjid
           WHERE d.classid = f.class AND d.objid = f.oid AND d.refclassid = 'pg_class'::regclass
             AND d.deptype IN ('a', 'i'))) AS needed,
       i.type, i.identity, coalesce(n.nspname::text, '-'),
       array_remove(ARRAY[
           CASE WHEN p.oid IS NOT NULL THEN quote_ident(p.name) || ' ON ' || quote_ident(r.relname)
                WHEN n.nspname IS NULL THEN i.identity
                ELSE substr(i.identity, length(quote_ident(n.nspname)) + 2) END,
           CASE WHEN f.class = 'pg_proc'::regclass THEN quote_ident(r.relname)
                || '(' || pg_get_function_identity_arguments(f.oid) || ')' END,
           CASE WHEN f.class IN ('pg_class'::regclass, 'pg_foreign_server'::regclass) AND f.number = 0
                THEN r.relname::text END], NULL),
       pg_get_userbyid(coalesce(o.owner, e.extowner, r.relowner))::text,
       coalesce(CASE WHEN f.kind = 'Grant' THEN 'role ' || pg_get_userbyid(f.grantor) END,
                CASE WHEN f.kind = 'Dependent' THEN j.type || ' ' || j.identity END),
       -- Of what belongs to a role whose rights the migration role lacks: its address, what may be done with it, and
       -- whether its owner's rights can be given at all.
       f.kind = 'Owner' AND NOT pg_has_role(coalesce(o.owner, e.extowner), 'USAGE') AS foreign,
       CASE WHEN f.kind = 'Owner' THEN (pg_identify_object_as_address(f.class, f.oid, f.number)).object_names END,
       CASE WHEN f.kind = 'Owner' THEN (pg_identify_object_as_address(f.class, f.oid, f.number)).object_args END,
       coalesce(pg_has_role(n.nspowner, 'USAGE'), false),
       f.class = 'pg_class'::regclass AND has_table_privilege(f.oid, 'TRIGGER'),
       f.class = 'pg_class'::regclass AND has_any_column_privilege(f.oid, 'REFERENCES'),
       coalesce((SELECT rolsuper FROM pg_roles AS s WHERE s.oid = coalesce(o.owner, e.extowner)), false),
       CASE WHEN f.kind = 'Granted' THEN ARRAY (
           SELECT format('GRANT %s%s ON %s TO %s%s', a.privilege_type,
                         (SELECT format(' (%I)', attname) FROM pg_attribute
                          WHERE f.class = 'pg_class'::regclass AND attrelid = f.oid AND attnum = nullif(f.number, 0)),
                         CASE WHEN f.class = 'pg_namespace'::regclass THEN 'SCHEMA ' || i.identity
                              ELSE CASE (SELECT relkind FROM pg_class WHERE oid = f.oid) WHEN 'S' THEN 'SEQUENCE '
                                   ELSE 'TABLE ' END || f.oid::regclass END,
                         CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE a.grantee::regrole::text END,
                         CASE WHEN a.is_grantable THEN ' WITH GRANT OPTION' ELSE '' END)
           FROM aclexplode(CASE f.number WHEN 0 THEN o.acl ELSE (
               SELECT attacl FROM pg_attribute WHERE attrelid = f.oid AND attnum = f.number) END) AS a) END
FROM found AS f
LEFT JOIN owned AS o ON o.class = f.class AND o.oid = f.oid
LEFT JOIN pg_extension AS e ON f.kind = 'Owner' AND f.class = 'pg_extension'::regclass AND e.oid = f.oid
LEFT JOIN part AS p ON p.class = f.class AND p.oid = f.oid
-- Names without quotes, and what has no owner of its own.
LEFT JOIN LATERAL (
    SELECT relname, relnamespace, relowner FROM pg_class
    WHERE oid = coalesce(p.relation, CASE WHEN f.class = 'pg_class'::regclass THEN f.oid END)
    UNION ALL SELECT proname, NULL, NULL FROM pg_proc WHERE f.class = 'pg_proc'::regclass AND oid = f.oid
    UNION ALL SELECT srvname, NULL, NULL FROM pg_foreign_server
    WHERE f.class = 'pg_foreign_server'::regclass AND oid = f.oid
) AS r ON true
LEFT JOIN pg_namespace AS n ON n.oid = coalesce(o.schema, r.relnamespace),
pg_identify_object(f.class, f.oid, f.number) AS i,
LATERAL (SELECT (pg_identify_object(coalesce(f.rootclass, f.class), coalesce(f.root, f.oid), 0)).*) AS j
UNION ALL
SELECT 'SecurityLabel', 0, 0, true, false, objtype, objname, '-', '{}', NULL, 'provider ' || provider,
       false, NULL, NULL, false, false, false, false, NULL
FROM pg_seclabels WHERE objtype NOT IN ('role', 'database', 'tablespace')
ORDER BY 1, 6, 7
