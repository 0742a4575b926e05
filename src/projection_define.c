/*
 * projection_define.c
 *		Making and changing projections: the SQL functions that create, replace,
 *		rename, drop, pause, resume, rebuild and hand on.
 *
 * Runs in sessions; nothing here waits for the projector, which takes up each
 * change when it is committed, but for the end of a batch that holds storage.
 * Writes saga.projection; the objects are made by projection_view.c.  Locks:
 * the view, then storage, then the row, as the workers lock the last two.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "access/xact.h"
#include "access/xlog.h"
#include "catalog/namespace.h"
#include "catalog/pg_class.h"
#include "catalog/pg_inherits.h"
#include "catalog/pg_type.h"
#include "commands/sequence.h"
#include "commands/trigger.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "lib/stringinfo.h"
#include "miscadmin.h"
#include "utils/acl.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/guc.h"
#include "utils/json.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/relcache.h"
#include "utils/varlena.h"

#include "compat.h"
#include "feed_shared.h"
#include "projection.h"
#include "projection_row.h"
#include "projection_stat.h"
#include "projection_view.h"
#include "rights.h"
#include "spi_util.h"

PG_FUNCTION_INFO_V1(saga_create_projection);
PG_FUNCTION_INFO_V1(saga_replace_projection);
PG_FUNCTION_INFO_V1(saga_rename_projection);
PG_FUNCTION_INFO_V1(saga_drop_projection);
PG_FUNCTION_INFO_V1(saga_pause_projection);
PG_FUNCTION_INFO_V1(saga_resume_projection);
PG_FUNCTION_INFO_V1(saga_rebuild_projection);
PG_FUNCTION_INFO_V1(saga_alter_projection_owner);
PG_FUNCTION_INFO_V1(saga_restored_projection);
PG_FUNCTION_INFO_V1(saga_wake_projector);

static bool inserting = false;	/* a row of ours, not one of a dump */

/* ---- what the server must have ---- */

/*
 * Newer minor releases let the administrator say which libraries may decode
 * the WAL; we never set that ourselves.
 */
static void
require_plugin_allowed(void)
{
	const char *allowed = GetConfigOption("output_plugin_libraries", true, false);
	List	   *libraries;
	ListCell   *lc;

	if (allowed == NULL)
		return;
	if (SplitGUCList(pstrdup(allowed), ',', &libraries))
		foreach(lc, libraries)
			if (strcmp(lfirst(lc), "saga") == 0 ||
				strcmp(lfirst(lc), "$libdir/saga") == 0)
				return;
	ereport(ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("the server does not allow saga to decode its WAL"),
			 errdetail("Projections follow changes through a logical replication slot whose output plugin is saga."),
			 errhint("Set output_plugin_libraries = '%s' in postgresql.conf and reload it.",
					 allowed[0] ? psprintf("%s, saga", allowed) : "saga")));
}

static void
require_server(void)
{
	saga_require_preload();
	if (wal_level < WAL_LEVEL_LOGICAL)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("projections need logical decoding"),
				 errhint("Set wal_level = logical in postgresql.conf and restart the server.")));
	require_plugin_allowed();
}

/* ---- arguments ---- */

static char *
text_argument(FunctionCallInfo fcinfo, int i, const char *what)
{
	if (PG_ARGISNULL(i))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("%s must not be null", what)));
	return text_to_cstring(PG_GETARG_TEXT_PP(i));
}

static List *
list_argument(FunctionCallInfo fcinfo, int i, const char *what)
{
	Datum	   *elems;
	bool	   *nulls;
	int			n;
	List	   *list = NIL;

	if (PG_ARGISNULL(i))
		return NIL;
	deconstruct_array(PG_GETARG_ARRAYTYPE_P(i), TEXTOID, -1, false, TYPALIGN_INT,
					  &elems, &nulls, &n);
	for (int k = 0; k < n; k++)
	{
		if (nulls[k])
			ereport(ERROR,
					(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
					 errmsg("%s must not contain nulls", what)));
		list = lappend(list, TextDatumGetCString(elems[k]));
	}
	return list;
}

/* One of two words. */
static bool
second_word(FunctionCallInfo fcinfo, int i, const char *what,
			const char *first, const char *second)
{
	char	   *given = text_argument(fcinfo, i, what);

	if (strcmp(given, second) == 0)
		return true;
	if (strcmp(given, first) == 0)
		return false;
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("invalid value for %s: \"%s\"", what, given),
			 errhint("Give \"%s\" or \"%s\".", first, second)));
}

static SagaClass
class_argument(FunctionCallInfo fcinfo, int i)
{
	SagaClass	class;
	char	   *given;

	if (PG_ARGISNULL(i))
		return SAGA_CLASS_FULL;
	given = text_to_cstring(PG_GETARG_TEXT_PP(i));
	if (!saga_class_from_name(given, &class))
	{
		StringInfoData names;

		initStringInfo(&names);
		for (int c = SAGA_CLASS_DELTA; c <= SAGA_CLASS_FULL; c++)
			appendStringInfo(&names, "%s\"%s\"", c ? ", " : "",
							 saga_class_name((SagaClass) c));
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("unrecognized class: \"%s\"", given),
				 errhint("Classes, cheapest first, are %s.", names.data)));
	}
	return class;
}

/* ---- checks of a program ---- */

static void
require_class(const SagaProgram *program, SagaClass class)
{
	StringInfoData detail;
	ListCell   *lc;

	if (program->class <= class)
		return;
	initStringInfo(&detail);
	foreach(lc, program->stages)
	{
		SagaStage  *stage = lfirst(lc);

		if (stage->class > class)
			appendStringInfo(&detail, "%sStage %d, %s, is of class %s: %s.",
							 detail.len ? "\n" : "", stage->number, stage->what,
							 saga_class_name(stage->class), stage->reason);
	}
	ereport(ERROR,
			(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
			 errmsg("the query cannot be kept up within class %s",
					saga_class_name(class)),
			 errdetail_internal("%s", detail.data),
			 errhint("Rewrite these parts, or allow class %s.",
					 saga_class_name(program->class))));
}

/* Set it, or say what to set. */
static void
require_replica_identity(const SagaProgram *program, bool set)
{
	List	   *lacking = saga_tables_without_identity(program, NULL);
	StringInfoData statements;
	StringInfoData names;
	ListCell   *lc;

	if (lacking == NIL)
		return;
	initStringInfo(&statements);
	initStringInfo(&names);
	foreach(lc, lacking)
	{
		char	   *name = saga_projection_name(lfirst_oid(lc));

		appendStringInfo(&names, "%s%s", names.len ? ", " : "", name);
		appendStringInfo(&statements, "%sALTER TABLE %s REPLICA IDENTITY FULL;",
						 statements.len ? " " : "", name);
	}
	if (!set)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("the replica identity of some tables does not cover the columns that the query uses"),
				 errdetail_plural("It is this table: %s.", "They are these tables: %s.",
								  list_length(lacking), names.data),
				 errhint("Run %s or have it done with replica_identity => 'full'.",
						 statements.data)));
	if (SPI_connect() != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect failed");
	if (SPI_execute(statements.data, false, 0) < 0)
		elog(ERROR, "could not set replica identities");
	SPI_finish();
}

/* ---- the row ---- */

static int64
new_id(void)
{
	return nextval_internal(saga_relation_oid("projection_id_seq"), false);
}

static char *
stages_json(const SagaProgram *program)
{
	StringInfoData json;
	ListCell   *lc;

	initStringInfo(&json);
	appendStringInfoChar(&json, '[');
	foreach(lc, program->stages)
	{
		SagaStage  *stage = lfirst(lc);

		appendStringInfo(&json, "%s{\"stage\": %d, \"class\": ",
						 foreach_current_index(lc) ? ", " : "", stage->number);
		escape_json(&json, saga_class_name(stage->class));
		appendStringInfoString(&json, ", \"what\": ");
		escape_json(&json, stage->what);
		appendStringInfoString(&json, ", \"reason\": ");
		escape_json(&json, stage->reason);
		appendStringInfoString(&json, ", \"storage\": ");
		escape_json(&json, stage->storage);
		appendStringInfoChar(&json, '}');
	}
	appendStringInfoChar(&json, ']');
	return json.data;
}

static Datum
text_array(List *list)
{
	Datum	   *elems = palloc(sizeof(Datum) * Max(1, list_length(list)));
	ListCell   *lc;

	foreach(lc, list)
		elems[foreach_current_index(lc)] = CStringGetTextDatum(lfirst(lc));
	return PointerGetDatum(construct_array(elems, list_length(list), TEXTOID, -1,
										   false, TYPALIGN_INT));
}

static void
insert(Datum *values, Oid *types, const char *nulls)
{
	saga_spi_own("INSERT INTO saga.projection (id, view, owner, query, search_path, consistency, key, indexes, "
				 "max_lag, class, shape, stages, deterministic, replaces) OVERRIDING SYSTEM VALUE "
				 "VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12::jsonb, $13, $14)",
				 14, types, values, nulls, NULL, NULL);
}

static void
insert_row(const SagaProjectionRow *row, const SagaProgram *program)
{
	Oid			types[14] = {INT8OID, REGCLASSOID, REGROLEOID, TEXTOID, TEXTOID,
	TEXTOID, TEXTARRAYOID, TEXTARRAYOID, INTERVALOID, TEXTOID, TEXTOID, TEXTOID, BOOLOID, INT8OID};
	Datum		v[14];
	char		nulls[14];

	memset(nulls, ' ', sizeof(nulls));
	v[0] = Int64GetDatum(row->id);
	v[1] = ObjectIdGetDatum(row->view);
	v[2] = ObjectIdGetDatum(row->owner);
	v[3] = CStringGetTextDatum(row->query);
	v[4] = CStringGetTextDatum(row->search_path);
	v[5] = CStringGetTextDatum(row->strict ? "strict" : "eventual");
	v[6] = text_array(row->key);
	nulls[6] = row->key == NIL ? 'n' : ' ';
	v[7] = text_array(row->indexes);
	v[8] = IntervalPGetDatum(row->max_lag);
	nulls[8] = row->max_lag == NULL ? 'n' : ' ';
	v[9] = CStringGetTextDatum(saga_class_name(program->class));
	v[10] = CStringGetTextDatum(program->shape);
	v[11] = CStringGetTextDatum(stages_json(program));
	v[12] = BoolGetDatum(program->deterministic);
	v[13] = Int64GetDatum(row->replaces);
	nulls[13] = row->replaces == 0 ? 'n' : ' ';
	inserting = true;
	PG_TRY();
	{
		insert(v, types, nulls);
	}
	PG_FINALLY();
	{
		inserting = false;
	}
	PG_END_TRY();
	saga_projections_changed();
}

static void
delete_row(int64 id)
{
	Oid			types[1] = {INT8OID};
	Datum		values[1];

	values[0] = Int64GetDatum(id);
	saga_spi_own("DELETE FROM saga.projection WHERE id = $1", 1, types, values,
				 NULL, NULL, NULL);
}

static void
set_state(int64 id, const char *state, const char *reason, bool count_fill)
{
	Oid			types[4] = {INT8OID, TEXTOID, TEXTOID, INT8OID};
	Datum		values[4];
	char		nulls[4] = {' ', ' ', ' ', ' '};

	values[0] = Int64GetDatum(id);
	values[1] = CStringGetTextDatum(state);
	values[2] = reason ? CStringGetTextDatum(reason) : (Datum) 0;
	nulls[2] = reason ? ' ' : 'n';
	values[3] = Int64GetDatum(count_fill ? 1 : 0);
	saga_spi_own("UPDATE saga.projection SET state = $2, reason = $3, sqlstate = NULL, fill = fill + $4, "
				 "since = pg_catalog.clock_timestamp() WHERE id = $1",
				 4, types, values, nulls, NULL, NULL);
	saga_projections_changed();
}

/* ---- create ---- */

/* Where a view of this name is to be created; it must not exist. */
static char *
qualified_new_name(const char *name)
{
	RangeVar   *rv = makeRangeVarFromNameList(textToQualifiedNameList(cstring_to_text(name)));
	Oid			schema = RangeVarGetCreationNamespace(rv);

	if (isTempNamespace(schema) || isAnyTempNamespace(schema))
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("a projection cannot be temporary")));
	if (OidIsValid(get_relname_relid(rv->relname, schema)))
		ereport(ERROR,
				(errcode(ERRCODE_DUPLICATE_TABLE),
				 errmsg("relation \"%s\" already exists", name)));
	return quote_qualified_identifier(get_namespace_name(schema), rv->relname);
}

static Interval *
max_lag_argument(FunctionCallInfo fcinfo, int i)
{
	Interval	zero = {0};

	if (PG_ARGISNULL(i))
		return NULL;
	if (DatumGetInt32(DirectFunctionCall2(interval_cmp, PG_GETARG_DATUM(i),
										  IntervalPGetDatum(&zero))) <= 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("max_lag must be longer than zero")));
	return PG_GETARG_INTERVAL_P(i);
}

/*
 * saga.create_projection(name, query, consistency, key, indexes,
 * require_class, replica_identity, max_lag) -> regclass
 */
Datum
saga_create_projection(PG_FUNCTION_ARGS)
{
	char	   *name = text_argument(fcinfo, 0, "name");
	SagaProjectionRow row = {0};
	SagaClass	class = class_argument(fcinfo, 5);
	bool		set_full = second_word(fcinfo, 6, "replica_identity", "check", "full");
	SagaProgram *program;
	char	   *qualified;

	row.query = text_argument(fcinfo, 1, "query");
	row.strict = second_word(fcinfo, 2, "consistency", "eventual", "strict");
	row.key = list_argument(fcinfo, 3, "key");
	row.indexes = list_argument(fcinfo, 4, "indexes");
	row.max_lag = max_lag_argument(fcinfo, 7);
	row.owner = GetUserId();
	row.search_path = pstrdup(GetConfigOption("search_path", false, false));

	require_server();
	qualified = qualified_new_name(name);
	row.id = new_id();
	program = saga_program_build(row.query, row.id, row.key);
	require_class(program, class);
	require_replica_identity(program, set_full);

	saga_storage_create(program, row.indexes, row.owner);
	saga_view_create(program, qualified);
	row.view = RangeVarGetRelid(makeRangeVarFromNameList(textToQualifiedNameList(cstring_to_text(qualified))),
								NoLock, false);
	insert_row(&row, program);
	PG_RETURN_OID(row.view);
}

/* ---- replace ---- */

static void
drop_replacement(int64 id)
{
	SagaProjectionRow row;

	if (!saga_projection_replacement(id, &row))
		return;
	saga_storage_drop(row.id);
	delete_row(row.id);
	saga_projection_stat_forget(row.id);
}

/*
 * Build the same projection anew under another id, beside the one that goes
 * on serving.  The projector fills it, and then it takes the other's place.
 */
static void
build_beside(const SagaProjectionRow *old, SagaProjectionRow *row,
			 SagaClass class, bool set_full)
{
	SagaUserSwitch save;
	SagaProgram *program;

	require_server();
	row->id = new_id();
	row->view = old->view;
	row->owner = old->owner;
	row->strict = old->strict;
	row->max_lag = old->max_lag;
	row->replaces = old->id;

	saga_run_as_begin(row->owner, row->search_path, &save);
	program = saga_program_build(row->query, row->id, row->key);
	saga_run_as_end(&save);
	saga_view_require_columns(old->view, program);
	require_class(program, class);
	require_replica_identity(program, set_full);

	drop_replacement(old->id);
	saga_storage_create(program, row->indexes, row->owner);
	insert_row(row, program);
}

/*
 * saga.replace_projection(name, query, key, indexes, require_class,
 * replica_identity)
 */
Datum
saga_replace_projection(PG_FUNCTION_ARGS)
{
	char	   *name = text_argument(fcinfo, 0, "name");
	SagaProjectionRow old;
	SagaProjectionRow row = {0};
	SagaClass	class = class_argument(fcinfo, 4);
	bool		set_full = second_word(fcinfo, 5, "replica_identity", "check", "full");

	row.query = text_argument(fcinfo, 1, "query");
	row.key = list_argument(fcinfo, 2, "key");
	row.search_path = pstrdup(GetConfigOption("search_path", false, false));
	saga_projection_to_change(name, &old);
	row.indexes = PG_ARGISNULL(3) ? old.indexes : list_argument(fcinfo, 3, "indexes");
	build_beside(&old, &row, class, set_full);
	PG_RETURN_VOID();
}

/* ---- rename, drop, hand on ---- */

static void
run_as_user(const char *sql)
{
	int			rc;

	if (SPI_connect() != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect failed");
	rc = SPI_execute(sql, false, 0);
	if (rc < 0)
		elog(ERROR, "SPI_execute failed: %s", SPI_result_code_string(rc));
	SPI_finish();
}

/* saga.rename_projection(name, new_name) */
Datum
saga_rename_projection(PG_FUNCTION_ARGS)
{
	char	   *name = text_to_cstring(PG_GETARG_TEXT_PP(0));
	List	   *parts = textToQualifiedNameList(PG_GETARG_TEXT_PP(1));
	SagaProjectionRow row;

	if (list_length(parts) != 1)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_NAME),
				 errmsg("the new name must not be qualified"),
				 errhint("Use ALTER VIEW ... SET SCHEMA to move it to another schema.")));
	saga_projection_to_change(name, &row);
	run_as_user(psprintf("ALTER VIEW %s RENAME TO %s",
						 saga_projection_name(row.view),
						 quote_identifier(strVal(linitial(parts)))));
	PG_RETURN_VOID();
}

/* saga.drop_projection(name) */
Datum
saga_drop_projection(PG_FUNCTION_ARGS)
{
	char	   *name = text_to_cstring(PG_GETARG_TEXT_PP(0));
	SagaProjectionRow row;

	saga_projection_to_change(name, &row);
	run_as_user(psprintf("DROP VIEW %s", saga_projection_name(row.view)));
	drop_replacement(row.id);
	saga_storage_drop(row.id);
	delete_row(row.id);
	saga_projection_stat_forget(row.id);
	saga_projections_changed();
	PG_RETURN_VOID();
}

static void
set_owner(const SagaProjectionRow *row, Oid owner)
{
	Oid			types[2] = {INT8OID, REGROLEOID};
	Datum		values[2];
	SagaUserSwitch save;

	/* upkeep reads the sources with his rights from now on */
	saga_run_as_begin(owner, row->search_path, &save);
	(void) saga_program_build(row->query, row->id, row->key);
	saga_run_as_end(&save);

	saga_storage_set_owner(row->id, owner);
	values[0] = Int64GetDatum(row->id);
	values[1] = ObjectIdGetDatum(owner);
	saga_spi_own("UPDATE saga.projection SET owner = $2 WHERE id = $1",
				 2, types, values, NULL, NULL, NULL);
}

/* saga.alter_projection_owner(name, role): as ALTER VIEW ... OWNER TO. */
Datum
saga_alter_projection_owner(PG_FUNCTION_ARGS)
{
	char	   *name = text_to_cstring(PG_GETARG_TEXT_PP(0));
	Oid			owner = get_role_oid(NameStr(*PG_GETARG_NAME(1)), false);
	SagaProjectionRow row;
	SagaProjectionRow replacement;

	saga_projection_to_change(name, &row);
	run_as_user(psprintf("ALTER VIEW %s OWNER TO %s", saga_projection_name(row.view),
						 quote_identifier(GetUserNameFromId(owner, false))));
	set_owner(&row, owner);
	if (saga_projection_replacement(row.id, &replacement))
		set_owner(&replacement, owner);
	saga_projections_changed();
	PG_RETURN_VOID();
}

/* ---- pause, resume, rebuild ---- */

/* saga.pause_projection(name) */
Datum
saga_pause_projection(PG_FUNCTION_ARGS)
{
	char	   *name = text_to_cstring(PG_GETARG_TEXT_PP(0));
	SagaProjectionRow row;

	saga_projection_to_change(name, &row);
	if (strcmp(row.state, "paused") == 0)
		PG_RETURN_VOID();
	if (strcmp(row.state, "parked") == 0)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("projection \"%s\" is parked", name),
				 errdetail_internal("%s", row.reason ? row.reason : "No reason is known."),
				 errhint("It is not kept up until saga.resume_projection() or saga.rebuild_projection() is called.")));
	set_state(row.id, "paused",
			  psprintf("paused by %s", GetUserNameFromId(GetUserId(), false)), false);
	PG_RETURN_VOID();
}

/* Back to work: what there is to do follows from what it holds. */
static void
resume(const SagaProjectionRow *row)
{
	if (strcmp(row->state, "paused") != 0 && strcmp(row->state, "parked") != 0)
		return;
	if (!row->filled)
		set_state(row->id, "filling", NULL, true);
	else if (row->stale || row->replaces != 0)
		set_state(row->id, "rebuilding", NULL, true);
	else
		set_state(row->id, "following", NULL, false);
}

/* saga.resume_projection(name) */
Datum
saga_resume_projection(PG_FUNCTION_ARGS)
{
	char	   *name = text_to_cstring(PG_GETARG_TEXT_PP(0));
	SagaProjectionRow row;
	SagaProjectionRow replacement;

	require_server();
	saga_projection_to_change(name, &row);
	resume(&row);
	if (saga_projection_replacement(row.id, &replacement))
		resume(&replacement);
	PG_RETURN_VOID();
}

/* saga.rebuild_projection(name, method) */
Datum
saga_rebuild_projection(PG_FUNCTION_ARGS)
{
	char	   *name = text_argument(fcinfo, 0, "name");
	bool		swap = second_word(fcinfo, 1, "method", "diff", "swap");
	SagaProjectionRow row;

	require_server();
	saga_projection_to_change(name, &row);
	if (!row.filled)
		set_state(row.id, "filling", NULL, true);
	else if (swap)
	{
		SagaProjectionRow again = {0};

		again.query = row.query;
		again.search_path = row.search_path;
		again.key = row.key;
		again.indexes = row.indexes;
		build_beside(&row, &again, SAGA_CLASS_FULL, false);
	}
	else
		set_state(row.id, "rebuilding",
				  psprintf("asked for by %s", GetUserNameFromId(GetUserId(), false)), true);
	PG_RETURN_VOID();
}

/* ---- rows that others insert ---- */

/*
 * Trigger before INSERT on saga.projection.  A row that is not from us is from
 * a dump, whose other tables are still being loaded, storage among them: it
 * must be left alone until somebody knows that all is there.
 */
Datum
saga_restored_projection(PG_FUNCTION_ARGS)
{
	TriggerData *trigger = (TriggerData *) fcinfo->context;
	TupleDesc	desc;
	HeapTuple	row;
	int			columns[4];
	Datum		values[4];
	bool		nulls[4] = {false, false, false, true};
	bool		isnull;

	if (!CALLED_AS_TRIGGER(fcinfo))
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("saga.restored_projection_() must be called as a trigger")));
	row = trigger->tg_trigtuple;
	if (inserting)
		return PointerGetDatum(row);
	desc = RelationGetDescr(trigger->tg_relation);
	columns[0] = SPI_fnumber(desc, "state");
	values[0] = CStringGetTextDatum("parked");
	columns[1] = SPI_fnumber(desc, "reason");
	values[1] = CStringGetTextDatum("restored from a dump; to be resumed when all of that is restored");
	columns[2] = SPI_fnumber(desc, "stale");
	values[2] = heap_getattr(row, SPI_fnumber(desc, "filled"), desc, &isnull);
	columns[3] = SPI_fnumber(desc, "snapshot");
	values[3] = (Datum) 0;
	saga_projections_changed();
	return PointerGetDatum(heap_modify_tuple_by_cols(row, desc, 4, columns, values, nulls));
}

/* Trigger after INSERT on saga.handler: nobody else tells of a restored one. */
Datum
saga_wake_projector(PG_FUNCTION_ARGS)
{
	if (!CALLED_AS_TRIGGER(fcinfo))
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("saga.wake_projector_() must be called as a trigger")));
	saga_projector_wake_at_commit();
	return PointerGetDatum(NULL);
}
