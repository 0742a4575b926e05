/*
 * isolation.c
 *		What the countermeasures have in common: which local action runs, what
 *		is released when a saga ends, and values that are read again.
 *
 * Called by executor.c and by the functions of the same family, which run
 * inside local actions; by log.c in the turn that ends sagas.  Owns
 * saga.reread_value; ends what semantic_lock.c and escrow.c hold.
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "utils/acl.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/jsonb.h"
#include "utils/lsyscache.h"

#include "compat.h"
#include "errors.h"
#include "isolation.h"
#include "semantic_lock.h"
#include "spi_util.h"

PG_FUNCTION_INFO_V1(saga_reread);

SagaLocalAction *saga_local_action = NULL;

void
saga_local_begin(SagaLocalAction *action)
{
	saga_local_reset();
	saga_local_action = action;
}

void
saga_local_end(void)
{
	/* a handler in the action may have caught it */
	saga_lock_raise();
	saga_local_action = NULL;
}

SagaLocalAction *
saga_local_require(const char *what, bool undo_too)
{
	SagaLocalAction *action = saga_local_action;

	if (action == NULL || action->step < 0)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("%s() can be called in local actions of sagas only", what),
				 errhint("Call it in a step that has no server.")));
	if (action->op == SAGA_OP_EVAL)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("%s() cannot be called in an expression", what),
				 errhint("Call it in the action of a step.")));
	if (action->op == SAGA_OP_UNDO && !undo_too)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("%s() cannot be called in a compensation", what),
				 errdetail("A compensation must not be refused.")));
	return action;
}

uint64
saga_own_query(SagaOwnQuery *query, Datum *values, const char *nulls)
{
	SagaUserSwitch save;
	int			rc;

	saga_as_extension_owner_begin(&save);
	if (query->plan == NULL)
	{
		SPIPlanPtr	fresh = SPI_prepare(query->sql, query->nargs, query->types);

		if (fresh == NULL || SPI_keepplan(fresh) != 0)
			elog(ERROR, "could not prepare: %s", query->sql);
		query->plan = fresh;
	}
	rc = SPI_execute_plan(query->plan, values, nulls, false, 0);
	if (rc < 0)
		elog(ERROR, "could not run: %s", query->sql);
	saga_as_extension_owner_end(&save);
	return SPI_processed;
}

/* ----------------------------------------------------------------- ends */

static Datum
id_array(const SagaIsolationEnd *ends, int n, int keeps)
{
	Datum	   *ids = palloc(sizeof(Datum) * Max(n, 1));
	int			found = 0;

	for (int i = 0; i < n; i++)
		if (keeps < 0 || ends[i].keeps == (keeps > 0))
			ids[found++] = UUIDPGetDatum(&ends[i].saga_id);
	return PointerGetDatum(construct_array(ids, found, UUIDOID, UUID_LEN, false, TYPALIGN_CHAR));
}

void
saga_isolation_end(const SagaIsolationEnd *ends, int n)
{
	static SagaOwnQuery finish = {
		NULL,
		"UPDATE saga.escrow_reservation SET final = true WHERE saga = ANY ($1)",
		1, {UUIDARRAYOID}
	};
	static SagaOwnQuery give_back = {
		NULL,
		"DELETE FROM saga.escrow_reservation WHERE saga = ANY ($1)",
		1, {UUIDARRAYOID}
	};
	static SagaOwnQuery forget = {
		NULL,
		"DELETE FROM saga.reread_value WHERE saga = ANY ($1)",
		1, {UUIDARRAYOID}
	};
	Datum		all;
	Datum		ids;

	if (n == 0)
		return;
	SPI_connect();
	all = id_array(ends, n, -1);
	saga_locks_release(all);
	ids = id_array(ends, n, 1);
	saga_own_query(&finish, &ids, NULL);
	ids = id_array(ends, n, 0);
	saga_own_query(&give_back, &ids, NULL);
	saga_own_query(&forget, &all, NULL);
	SPI_finish();
}

void
saga_isolation_undone(const pg_uuid_t *saga_id, int32 step)
{
	static SagaOwnQuery query = {
		NULL,
		"DELETE FROM saga.escrow_reservation WHERE saga = $1 AND step = $2",
		2, {UUIDOID, INT4OID}
	};
	Datum		values[2];

	SPI_connect();
	values[0] = UUIDPGetDatum(saga_id);
	values[1] = Int32GetDatum(step);
	saga_own_query(&query, values, NULL);
	SPI_finish();
}

/* --------------------------------------------------------- reread value */

/*
 * The contents of the one row that has these values of these columns, as a
 * digest; NULL if there is none.  As the caller: with his rights.
 */
static char *
row_digest(Oid source, Jsonb *key, bool lock)
{
	StringInfoData sql;
	char	   *table = quote_qualified_identifier(get_namespace_name(get_rel_namespace(source)),
												   get_rel_name(source));
	JsonbIterator *it = JsonbIteratorInit(&key->root);
	JsonbValue	v;
	JsonbIteratorToken token;
	Oid			types[1] = {JSONBOID};
	Datum		values[1];
	char	   *digest = NULL;
	int			columns = 0;

	initStringInfo(&sql);
	appendStringInfo(&sql, "SELECT pg_catalog.md5(pg_catalog.to_jsonb(t)::pg_catalog.text) FROM %s AS t"
					 " WHERE (", table);
	token = JsonbIteratorNext(&it, &v, true);
	if (token != WJB_BEGIN_OBJECT)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("the key must be a JSON object of columns and values")));
	while ((token = JsonbIteratorNext(&it, &v, true)) != WJB_END_OBJECT)
	{
		char	   *column;

		if (token != WJB_KEY)
			continue;
		column = pnstrdup(v.val.string.val, v.val.string.len);
		if (get_attnum(source, column) <= 0)
			ereport(ERROR,
					(errcode(ERRCODE_UNDEFINED_COLUMN),
					 errmsg("column \"%s\" of relation \"%s\" does not exist",
							column, get_rel_name(source))));
		appendStringInfo(&sql, "%st.%s", columns++ ? ", " : "", quote_identifier(column));
	}
	if (columns == 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("the key must be a JSON object of columns and values")));
	appendStringInfoString(&sql, ") = (SELECT ");
	it = JsonbIteratorInit(&key->root);
	(void) JsonbIteratorNext(&it, &v, true);
	columns = 0;
	while ((token = JsonbIteratorNext(&it, &v, true)) != WJB_END_OBJECT)
		if (token == WJB_KEY)
			appendStringInfo(&sql, "%sk.%s", columns++ ? ", " : "",
							 quote_identifier(pnstrdup(v.val.string.val, v.val.string.len)));
	appendStringInfo(&sql, " FROM pg_catalog.jsonb_populate_record(NULL::%s, $1) AS k)%s",
					 table, lock ? " FOR SHARE" : "");

	values[0] = JsonbPGetDatum(key);
	if (SPI_execute_with_args(sql.data, 1, types, values, NULL, false, 2) < 0)
		elog(ERROR, "could not run: %s", sql.data);
	if (SPI_processed > 1)
		ereport(ERROR,
				(errcode(ERRCODE_CARDINALITY_VIOLATION),
				 errmsg("more than one row of \"%s\" has this key", get_rel_name(source))));
	if (SPI_processed == 1)
		digest = SPI_getvalue(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1);
	return digest;
}

/* saga.reread(source regclass, key jsonb, renew boolean, lock boolean) -> boolean */
Datum
saga_reread(PG_FUNCTION_ARGS)
{
	static SagaOwnQuery recall = {
		NULL,
		"SELECT digest FROM saga.reread_value WHERE saga = $1 AND source = $2 AND key = $3",
		3, {UUIDOID, OIDOID, JSONBOID}
	};
	static SagaOwnQuery keep = {
		NULL,
		"INSERT INTO saga.reread_value (saga, source, key, digest) VALUES ($1, $2, $3, $4)"
		" ON CONFLICT (saga, source, key) DO UPDATE SET digest = excluded.digest",
		4, {UUIDOID, OIDOID, JSONBOID, TEXTOID}
	};
	SagaLocalAction *action = saga_local_require("saga.reread", false);
	Oid			source = PG_GETARG_OID(0);
	Jsonb	   *key = PG_GETARG_JSONB_P(1);
	bool		renew = PG_GETARG_BOOL(2);
	bool		lock = PG_GETARG_BOOL(3);
	Datum		values[4];
	char	   *digest;
	bool		known;

	SPI_connect();
	digest = row_digest(source, key, lock);
	values[0] = UUIDPGetDatum(&action->saga_id);
	values[1] = ObjectIdGetDatum(source);
	values[2] = JsonbPGetDatum(key);
	known = saga_own_query(&recall, values, NULL) > 0;
	if (known && !renew)
	{
		char	   *before = SPI_getvalue(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1);

		if (strcmp(before, digest ? digest : "") != 0)
			ereport(ERROR,
					(errcode(ERRCODE_SAGA_DECLINED),
					 errmsg("a row of \"%s\" has changed since the saga read it",
							get_rel_name(source)),
					 errdetail("Key: %s.", JsonbToCString(NULL, &key->root, VARSIZE(key)))));
	}
	else
	{
		/* '' stands for a row that is not there */
		values[3] = CStringGetTextDatum(digest ? digest : "");
		saga_own_query(&keep, values, NULL);
		action->took = true;
	}
	SPI_finish();
	PG_RETURN_BOOL(known);
}
