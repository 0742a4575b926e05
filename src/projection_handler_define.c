/*
 * projection_handler_define.c
 *		Making and changing handlers: the SQL functions of sessions.
 *
 * Nothing here waits for the projector, but for the row while it is at work
 * with that handler; it takes up each change when it is committed.  Writes
 * saga.handler.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/table.h"
#include "access/xlog.h"
#include "catalog/catalog.h"
#include "catalog/namespace.h"
#include "catalog/pg_class.h"
#include "catalog/pg_inherits.h"
#include "catalog/pg_proc.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/regproc.h"
#include "utils/rel.h"
#include "utils/rls.h"
#include "utils/syscache.h"

#include "compat.h"
#include "feed_shared.h"
#include "handler.h"
#include "projection.h"
#include "rights.h"
#include "shmem.h"
#include "spi_util.h"

PG_FUNCTION_INFO_V1(saga_create_handler);
PG_FUNCTION_INFO_V1(saga_drop_handler);
PG_FUNCTION_INFO_V1(saga_pause_handler);
PG_FUNCTION_INFO_V1(saga_resume_handler);
PG_FUNCTION_INFO_V1(saga_skip_handler_change);

/* ---- creation ---- */

static void
require_argument(FunctionCallInfo fcinfo, int i, const char *what)
{
	if (PG_ARGISNULL(i))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("%s must not be null", what)));
}

static void
require_server(void)
{
	saga_require_preload();
	if (wal_level < WAL_LEVEL_LOGICAL)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("handlers need logical decoding"),
				 errhint("Set wal_level = logical in postgresql.conf and restart the server.")));
}

/* Old rows must be in the WAL, of the table or of all its partitions. */
static void
check_old_rows(Oid source, int operations)
{
	ListCell   *lc;

	if ((operations & (SAGA_HANDLES_UPDATE | SAGA_HANDLES_DELETE)) == 0)
		return;
	foreach(lc, find_all_inheritors(source, AccessShareLock, NULL))
	{
		Relation	rel = table_open(lfirst_oid(lc), NoLock);

		if (rel->rd_rel->relkind == RELKIND_RELATION &&
			rel->rd_rel->relreplident != REPLICA_IDENTITY_FULL)
			ereport(ERROR,
					(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
					 errmsg("the old rows of table \"%s\" are not in the WAL",
							RelationGetRelationName(rel)),
					 errhint("Run ALTER TABLE %s REPLICA IDENTITY FULL, or ask for inserts only: operations => '{insert}'.",
							 quote_qualified_identifier(get_namespace_name(RelationGetNamespace(rel)),
														RelationGetRelationName(rel)))));
		table_close(rel, NoLock);
	}
}

static void
check_source(Oid source, int operations)
{
	Relation	rel = table_open(source, AccessShareLock);
	const char *name = RelationGetRelationName(rel);
	char	   *schema = get_namespace_name(RelationGetNamespace(rel));

	if (rel->rd_rel->relkind != RELKIND_RELATION &&
		rel->rd_rel->relkind != RELKIND_PARTITIONED_TABLE)
		ereport(ERROR,
				(errcode(ERRCODE_WRONG_OBJECT_TYPE),
				 errmsg("\"%s\" is not a table", name)));
	if (rel->rd_rel->relpersistence != RELPERSISTENCE_PERMANENT)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("changes of table \"%s\" are not in the WAL", name),
				 errdetail("It is temporary or unlogged.")));
	if (IsCatalogRelation(rel) || strcmp(schema, "saga") == 0 ||
		strcmp(schema, SAGA_DATA_SCHEMA) == 0)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("a handler cannot follow table \"%s.%s\"", schema, name),
				 errdetail("System catalogs, tables of saga and storage of projections are not decoded.")));
	if (pg_class_aclcheck(source, GetUserId(), ACL_SELECT) != ACLCHECK_OK)
		aclcheck_error(ACLCHECK_NO_PRIV, OBJECT_TABLE, name);
	if (check_enable_rls(source, InvalidOid, true) == RLS_ENABLED)
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("row-level security of table \"%s\" applies to you", name),
				 errdetail("A handler is called for all rows."),
				 errhint("Create the handler as the owner of the table, or as a role with BYPASSRLS.")));
	check_old_rows(source, operations);
	table_close(rel, NoLock);
}

static void
check_function(Oid function, Oid source)
{
	HeapTuple	tuple = SearchSysCache1(PROCOID, ObjectIdGetDatum(function));
	Oid			row = get_rel_type_id(source);
	Form_pg_proc proc;

	if (!HeapTupleIsValid(tuple))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_FUNCTION),
				 errmsg("function with OID %u does not exist", function)));
	proc = (Form_pg_proc) GETSTRUCT(tuple);
	if (proc->prokind != PROKIND_FUNCTION || proc->proretset ||
		proc->pronargs != 3 || OidIsValid(proc->provariadic) ||
		proc->proargtypes.values[0] != TEXTOID ||
		proc->proargtypes.values[1] != row || proc->proargtypes.values[2] != row)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_FUNCTION_DEFINITION),
				 errmsg("%s cannot be a handler of table \"%s\"",
						format_procedure(function), get_rel_name(source)),
				 errhint("A handler is a function (operation text, old_row %s, new_row %s) that returns one value or void.",
						 format_type_be(row), format_type_be(row))));
	if (proc->proisstrict)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_FUNCTION_DEFINITION),
				 errmsg("handler %s must not be strict", format_procedure(function)),
				 errdetail("The old row of an insert and the new row of a delete are null, so it would never be called for these.")));
	if (saga_proc_aclcheck(function, GetUserId()) != ACLCHECK_OK)
		aclcheck_error(ACLCHECK_NO_PRIV, OBJECT_FUNCTION, NameStr(proc->proname));
	ReleaseSysCache(tuple);
}

/* saga.create_handler(name, source, operations, handler) */
Datum
saga_create_handler(PG_FUNCTION_ARGS)
{
	Oid			types[6] = {TEXTOID, OIDOID, OIDOID, TEXTARRAYOID, OIDOID, TEXTOID};
	Datum		values[6];
	Oid			source;
	Oid			function;
	int			operations;

	require_argument(fcinfo, 0, "the name");
	require_argument(fcinfo, 1, "the source");
	require_argument(fcinfo, 2, "operations");
	require_argument(fcinfo, 3, "the handler");
	source = PG_GETARG_OID(1);
	operations = saga_handler_operations(PG_GETARG_DATUM(2));
	function = PG_GETARG_OID(3);
	if (operations == 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("a handler without operations would never be called")));
	require_server();
	if (!saga_owner_may_run_local(GetUserId()))
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("handlers do not run as a superuser"),
				 errhint("Create it as an ordinary role, or have saga.allow_superuser_steps set.")));
	check_source(source, operations);
	check_function(function, source);

	values[0] = PG_GETARG_DATUM(0);
	values[1] = ObjectIdGetDatum(source);
	values[2] = ObjectIdGetDatum(GetUserId());
	values[3] = PG_GETARG_DATUM(2);
	values[4] = ObjectIdGetDatum(function);
	values[5] = CStringGetTextDatum(GetConfigOption("search_path", false, false));
	if (saga_spi_own("INSERT INTO saga.handler (name, source, owner, operations, handler, search_path)"
					 " VALUES ($1, $2::regclass, $3::regrole, $4, $5::regprocedure, $6)"
					 " ON CONFLICT (name) DO NOTHING",
					 6, types, values, NULL, NULL, NULL) == 0)
		ereport(ERROR,
				(errcode(ERRCODE_DUPLICATE_OBJECT),
				 errmsg("handler \"%s\" already exists",
						TextDatumGetCString(values[0]))));
	saga_projector_wake_at_commit();
	PG_RETURN_VOID();
}

/* ---- changes ---- */

typedef struct HandlerRow
{
	char	   *state;
	bool		lost;
	bool		poisoned;
} HandlerRow;

static bool
read_row(Datum name, bool lock, Oid *owner, HandlerRow *row)
{
	Oid			types[1] = {TEXTOID};
	SagaUserSwitch save;
	MemoryContext caller = CurrentMemoryContext;
	bool		found;

	saga_as_extension_owner_begin(&save);
	if (SPI_connect() != SPI_OK_CONNECT)
		elog(ERROR, "could not connect to SPI");
	if (SPI_execute_with_args(lock ?
							  "SELECT owner::oid, state, lost, poison IS NOT NULL FROM saga.handler WHERE name = $1 FOR UPDATE" :
							  "SELECT owner::oid, state, lost, poison IS NOT NULL FROM saga.handler WHERE name = $1",
							  1, types, &name, NULL, false, 0) != SPI_OK_SELECT)
		elog(ERROR, "could not read saga.handler");
	found = SPI_processed > 0;
	if (found)
	{
		HeapTuple	tuple = SPI_tuptable->vals[0];
		TupleDesc	desc = SPI_tuptable->tupdesc;
		bool		isnull;

		*owner = DatumGetObjectId(SPI_getbinval(tuple, desc, 1, &isnull));
		row->state = MemoryContextStrdup(caller, SPI_getvalue(tuple, desc, 2));
		row->lost = DatumGetBool(SPI_getbinval(tuple, desc, 3, &isnull));
		row->poisoned = DatumGetBool(SPI_getbinval(tuple, desc, 4, &isnull));
	}
	SPI_finish();
	saga_as_extension_owner_end(&save);
	return found;
}

/*
 * Locks the row, and waits for that while the projector is at work with it:
 * so not before it is known that the user may.
 */
static void
handler_to_change(Datum name, HandlerRow *row)
{
	for (int lock = 0; lock <= 1; lock++)
	{
		Oid			owner;

		if (!read_row(name, lock, &owner, row))
			ereport(ERROR,
					(errcode(ERRCODE_UNDEFINED_OBJECT),
					 errmsg("handler \"%s\" does not exist",
							TextDatumGetCString(name))));
		if (!saga_may_change(GetUserId(), owner))
			ereport(ERROR,
					(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
					 errmsg("must be owner of handler \"%s\"",
							TextDatumGetCString(name))));
	}
}

static void
change(const char *sql, Datum name)
{
	Oid			types[1] = {TEXTOID};

	saga_spi_own(sql, 1, types, &name, NULL, NULL, NULL);
	saga_projector_wake_at_commit();
}

/* saga.drop_handler(name) */
Datum
saga_drop_handler(PG_FUNCTION_ARGS)
{
	HandlerRow	row;

	handler_to_change(PG_GETARG_DATUM(0), &row);
	change("DELETE FROM saga.handler WHERE name = $1", PG_GETARG_DATUM(0));
	PG_RETURN_VOID();
}

/* saga.pause_handler(name) */
Datum
saga_pause_handler(PG_FUNCTION_ARGS)
{
	HandlerRow	row;

	handler_to_change(PG_GETARG_DATUM(0), &row);
	if (strcmp(row.state, "paused") == 0)
		PG_RETURN_VOID();
	if (strcmp(row.state, "parked") == 0)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("handler \"%s\" is parked", TextDatumGetCString(PG_GETARG_DATUM(0))),
				 errhint("It does not run until saga.resume_handler() is called.")));
	change("UPDATE saga.handler SET state = 'paused', since = pg_catalog.clock_timestamp()"
		   " WHERE name = $1", PG_GETARG_DATUM(0));
	PG_RETURN_VOID();
}

/* saga.resume_handler(name, accept_loss) */
Datum
saga_resume_handler(PG_FUNCTION_ARGS)
{
	HandlerRow	row;

	handler_to_change(PG_GETARG_DATUM(0), &row);
	if (strcmp(row.state, "paused") != 0 && strcmp(row.state, "parked") != 0)
		PG_RETURN_VOID();
	if (row.lost && !PG_GETARG_BOOL(1))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("changes for handler \"%s\" are lost", TextDatumGetCString(PG_GETARG_DATUM(0))),
				 errdetail("Those committed after its position are no longer in the WAL, and it would never be called for them."),
				 errhint("With accept_loss => true it begins anew, with the changes to come.")));
	change("UPDATE saga.handler SET since = pg_catalog.clock_timestamp(), reason = NULL, sqlstate = NULL,"
		   " poison = NULL, lost = false,"
		   " identity = CASE WHEN lost THEN '' ELSE identity END,"
		   " position = CASE WHEN lost THEN NULL ELSE position END,"
		   " state = CASE WHEN lost OR position IS NULL THEN 'starting' ELSE 'following' END"
		   " WHERE name = $1", PG_GETARG_DATUM(0));
	PG_RETURN_VOID();
}

/* saga.skip_handler_change(name) */
Datum
saga_skip_handler_change(PG_FUNCTION_ARGS)
{
	HandlerRow	row;

	handler_to_change(PG_GETARG_DATUM(0), &row);
	if (strcmp(row.state, "parked") != 0 || !row.poisoned)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("handler \"%s\" is not parked on a transaction",
						TextDatumGetCString(PG_GETARG_DATUM(0)))));
	change("UPDATE saga.handler SET position = poison, poison = NULL, reason = NULL, sqlstate = NULL,"
		   " state = 'following', since = pg_catalog.clock_timestamp() WHERE name = $1",
		   PG_GETARG_DATUM(0));
	PG_RETURN_VOID();
}
