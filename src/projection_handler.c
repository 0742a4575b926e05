/*
 * projection_handler.c
 *		Running handlers in the projector (see handler.h).
 *
 * Calls user functions with the rights of the handler's owner, and writes
 * saga.handler.  Which tables are decoded is the projector's business, and
 * sessions change rows in projection_handler_define.c.
 *
 * What a handler writes is ordinary: other decoders see it, and so do
 * projections and handlers.  Only the position is marked as ours.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/xact.h"
#include "catalog/pg_proc.h"
#include "catalog/pg_type.h"
#include "commands/trigger.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "nodes/makefuncs.h"
#include "replication/origin.h"
#include "storage/lock.h"
#include "storage/proc.h"
#include "utils/acl.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/pg_lsn.h"
#include "utils/resowner.h"
#include "utils/rls.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"
#include "utils/timeout.h"
#include "utils/timestamp.h"
#include "utils/typcache.h"

#include "compat.h"
#include "handler.h"
#include "projector.h"
#include "quarantine.h"
#include "rights.h"
#include "spi_util.h"

/*
 * The projector waits meanwhile, so a function that is stuck must not be: one
 * transaction's calls may take this long, a lock this long.
 */
#define HANDLER_TIMEOUT_MS 60000
#define HANDLER_LOCK_MS 1000
#define HANDLER_ATTEMPTS 10		/* at errors that are nobody's fault */
#define HANDLER_TURN_US (500 * INT64CONST(1000))
#define ROW_TEXT_LENGTH 500		/* bytes of a row in a reason */

/* ------------------------------------------------------------------ rows */

static const char *const state_names[] = {
	[SAGA_H_STARTING] = "starting",
	[SAGA_H_FOLLOWING] = "following",
	[SAGA_H_PAUSED] = "paused",
	[SAGA_H_PARKED] = "parked",
};

static SagaHandlerState
state_from_name(const char *name)
{
	for (int i = 0; i < (int) lengthof(state_names); i++)
		if (strcmp(state_names[i], name) == 0)
			return (SagaHandlerState) i;
	elog(ERROR, "unexpected handler state \"%s\"", name);
}

int
saga_handler_operations(Datum array)
{
	Datum	   *elems;
	bool	   *nulls;
	int			n;
	int			mask = 0;

	deconstruct_array(DatumGetArrayTypeP(array), TEXTOID, -1, false,
					  TYPALIGN_INT, &elems, &nulls, &n);
	for (int i = 0; i < n; i++)
	{
		char	   *word;

		if (nulls[i])
			ereport(ERROR,
					(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
					 errmsg("an operation must not be null")));
		word = TextDatumGetCString(elems[i]);
		if (strcmp(word, "insert") == 0)
			mask |= SAGA_HANDLES_INSERT;
		else if (strcmp(word, "update") == 0)
			mask |= SAGA_HANDLES_UPDATE;
		else if (strcmp(word, "delete") == 0)
			mask |= SAGA_HANDLES_DELETE;
		else
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("unrecognized operation: \"%s\"", word),
					 errhint("Operations are insert, update and delete.")));
	}
	return mask;
}

static Datum
column(uint64 row, int number, bool *isnull)
{
	return SPI_getbinval(SPI_tuptable->vals[row], SPI_tuptable->tupdesc, number,
						 isnull);
}

static char *
text_column(uint64 row, int number)
{
	bool		isnull;
	Datum		value = column(row, number, &isnull);

	return isnull ? NULL : TextDatumGetCString(value);
}

static XLogRecPtr
lsn_column(uint64 row, int number)
{
	bool		isnull;
	Datum		value = column(row, number, &isnull);

	return isnull ? InvalidXLogRecPtr : DatumGetLSN(value);
}

static void
set_text(SagaHandler *handler, char **field, const char *text)
{
	if (*field != NULL && text != NULL && strcmp(*field, text) == 0)
		return;
	if (*field != NULL)
		pfree(*field);
	*field = text ? MemoryContextStrdup(handler->context, text) : NULL;
}

/* What changes of a row, from column 'first' on. */
#define STATE_COLUMNS "state, lost, identity, position, poison, reason, sqlstate"

static void
read_state(SagaHandler *handler, uint64 row, int first)
{
	bool		isnull;

	handler->state = state_from_name(TextDatumGetCString(column(row, first, &isnull)));
	handler->lost = DatumGetBool(column(row, first + 1, &isnull));
	set_text(handler, &handler->identity, text_column(row, first + 2));
	handler->position = lsn_column(row, first + 3);
	handler->poison = lsn_column(row, first + 4);
	set_text(handler, &handler->reason, text_column(row, first + 5));
	set_text(handler, &handler->sqlstate, text_column(row, first + 6));
}

static SagaHandler *
read_row(uint64 row, MemoryContext parent)
{
	MemoryContext context = AllocSetContextCreate(parent, "saga handler",
												  ALLOCSET_SMALL_SIZES);
	SagaHandler *handler = MemoryContextAllocZero(context, sizeof(SagaHandler));
	bool		isnull;

	handler->context = context;
	handler->id = DatumGetInt64(column(row, 1, &isnull));
	set_text(handler, &handler->name, text_column(row, 2));
	handler->source = DatumGetObjectId(column(row, 3, &isnull));
	handler->owner = DatumGetObjectId(column(row, 4, &isnull));
	handler->operations = saga_handler_operations(column(row, 5, &isnull));
	handler->function = DatumGetObjectId(column(row, 6, &isnull));
	set_text(handler, &handler->search_path, text_column(row, 7));
	read_state(handler, row, 8);
	return handler;
}

/* Run a statement as the extension's owner; what it returns is in SPI_tuptable. */
static void
own_begin(const char *sql, int nargs, Oid *types, Datum *values,
		  SagaUserSwitch *save)
{
	saga_as_extension_owner_begin(save);
	if (SPI_connect() != SPI_OK_CONNECT)
		elog(ERROR, "could not connect to SPI");
	if (SPI_execute_with_args(sql, nargs, types, values, NULL, false, 0) < 0)
		elog(ERROR, "could not read saga.handler");
}

static void
own_end(const SagaUserSwitch *save)
{
	SPI_finish();
	saga_as_extension_owner_end(save);
}

List *
saga_handler_load(List *old)
{
	MemoryContext caller = CurrentMemoryContext;
	SagaUserSwitch save;
	List	   *list = NIL;
	ListCell   *lc;

	own_begin("SELECT id, name, source::oid, owner::oid, operations, handler::oid,"
			  " search_path, " STATE_COLUMNS
			  " FROM saga.handler ORDER BY id",
			  0, NULL, NULL, &save);
	for (uint64 i = 0; i < SPI_processed; i++)
	{
		SagaHandler *handler = read_row(i, caller);
		MemoryContext spi = MemoryContextSwitchTo(caller);

		foreach(lc, old)
		{
			SagaHandler *before = lfirst(lc);

			if (before->id == handler->id &&
				before->position == handler->position)
				handler->attempts = before->attempts;
		}
		list = lappend(list, handler);
		MemoryContextSwitchTo(spi);
	}
	own_end(&save);
	foreach(lc, old)
		MemoryContextDelete(((SagaHandler *) lfirst(lc))->context);
	list_free(old);
	return list;
}

/*
 * The row as it is now, locked; false if it is gone, or if a session has it
 * and may be about to change it.
 */
static bool
lock_row(SagaHandler *handler)
{
	Oid			types[1] = {INT8OID};
	Datum		values[1];
	SagaUserSwitch save;
	bool		locked;

	values[0] = Int64GetDatum(handler->id);
	own_begin("SELECT " STATE_COLUMNS " FROM saga.handler WHERE id = $1"
			  " FOR NO KEY UPDATE SKIP LOCKED",
			  1, types, values, &save);
	locked = SPI_processed == 1;
	if (locked)
		read_state(handler, 0, 1);
	own_end(&save);
	handler->calls = 0;
	handler->moved = false;
	return locked;
}

static void
store_row(SagaHandler *handler)
{
	Oid			types[9] = {INT8OID, TEXTOID, BOOLOID, TEXTOID, LSNOID, LSNOID,
		TEXTOID, TEXTOID, INT8OID};
	Datum		values[9];
	char		nulls[9];
	RepOriginId origin = replorigin_session_origin;

	if (!handler->moved)
		return;
	memset(nulls, ' ', sizeof(nulls));
	values[0] = Int64GetDatum(handler->id);
	values[1] = CStringGetTextDatum(state_names[handler->state]);
	values[2] = BoolGetDatum(handler->lost);
	values[3] = CStringGetTextDatum(handler->identity);
	values[4] = LSNGetDatum(handler->position);
	values[5] = LSNGetDatum(handler->poison);
	values[6] = handler->reason ? CStringGetTextDatum(handler->reason) : (Datum) 0;
	values[7] = handler->sqlstate ? CStringGetTextDatum(handler->sqlstate) : (Datum) 0;
	values[8] = Int64GetDatum(handler->calls);
	if (handler->position == InvalidXLogRecPtr)
		nulls[4] = 'n';
	if (handler->poison == InvalidXLogRecPtr)
		nulls[5] = 'n';
	if (handler->reason == NULL)
		nulls[6] = 'n';
	if (handler->sqlstate == NULL)
		nulls[7] = 'n';
	PG_TRY();
	{
		replorigin_session_origin = DoNotReplicateId;
		saga_spi_own("UPDATE saga.handler SET state = $2, lost = $3, identity = $4, position = $5,"
					 " poison = $6, reason = $7, sqlstate = $8, changes = changes + $9,"
					 " since = CASE WHEN state = $2 THEN since ELSE pg_catalog.clock_timestamp() END"
					 " WHERE id = $1",
					 9, types, values, nulls, NULL, NULL);
	}
	PG_FINALLY();
	{
		replorigin_session_origin = origin;
	}
	PG_END_TRY();
	handler->calls = 0;
	handler->moved = false;
}

static void
set_state(SagaHandler *handler, SagaHandlerState state, const char *reason,
		  const char *sqlstate)
{
	handler->state = state;
	set_text(handler, &handler->reason, reason);
	set_text(handler, &handler->sqlstate, sqlstate);
	handler->attempts = 0;
	handler->moved = true;
}

void
saga_handler_start(SagaHandler *handler, const char *identity,
				   XLogRecPtr position)
{
	set_text(handler, &handler->identity, identity);
	handler->position = position;
	set_state(handler, SAGA_H_FOLLOWING, NULL, NULL);
	store_row(handler);
}

void
saga_handler_lose(SagaHandler *handler, const char *reason)
{
	handler->lost = true;
	handler->poison = InvalidXLogRecPtr;
	saga_handler_park(handler, reason, NULL);
}

void
saga_handler_park(SagaHandler *handler, const char *reason,
				  const char *sqlstate)
{
	set_state(handler, SAGA_H_PARKED, reason, sqlstate);
	store_row(handler);
}

/* ----------------------------------------------------------- transactions */

static SagaTrackedRoot *
root_of(Oid relid, Oid source, SagaTracked **table)
{
	ListCell   *lc;

	*table = saga_set_tracked(relid);
	if (*table == NULL)
		return NULL;
	foreach(lc, (*table)->roots)
	{
		SagaTrackedRoot *root = lfirst(lc);

		if (root->root == source)
			return root;
	}
	return NULL;
}

static bool
concerns(const SagaHandler *handler, List *relids)
{
	SagaTracked *table;
	ListCell   *lc;

	foreach(lc, relids)
		if (root_of(lfirst_oid(lc), handler->source, &table) != NULL)
			return true;
	return false;
}

bool
saga_handler_keeps(const SagaHandler *handler, const SagaFeedTxn *txn)
{
	return handler->state != SAGA_H_STARTING && !handler->lost &&
		handler->position != InvalidXLogRecPtr &&
		txn->commit_lsn > handler->position && concerns(handler, txn->relids);
}

/* ------------------------------------------------------------------ calls */

/* The calls for one transaction, and how far they are. */
typedef struct Calls
{
	SagaHandler *handler;
	SagaFeedTxn *txn;
	MemoryContext context;		/* of one call */
	FmgrInfo	function;
	int64		calls;
	const char *operation;		/* of the call that runs, or NULL */
	Datum		row;			/* and its row, for messages */
	char	   *text;			/* that row, see describe_row() */
} Calls;

/*
 * The owner's rights as they are now: rows come from the WAL, where nobody
 * else would ask.
 */
static void
check_rights(const SagaHandler *handler)
{
	char	   *source = get_rel_name(handler->source);

	if (source == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_TABLE),
				 errmsg("the table of the handler does not exist any more")));
	if (!saga_owner_may_run_local(handler->owner))
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("handlers do not run as a superuser"),
				 errhint("Create the handler as an ordinary role, or set saga.allow_superuser_steps.")));
	if (pg_class_aclcheck(handler->source, handler->owner, ACL_SELECT) != ACLCHECK_OK)
		aclcheck_error(ACLCHECK_NO_PRIV, OBJECT_TABLE, source);
	if (check_enable_rls(handler->source, handler->owner, true) == RLS_ENABLED)
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("row-level security of table \"%s\" applies to the owner of the handler",
						source)));
	if (!SearchSysCacheExists1(PROCOID, ObjectIdGetDatum(handler->function)))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_FUNCTION),
				 errmsg("the function of the handler does not exist any more")));
	if (saga_proc_aclcheck(handler->function, handler->owner) != ACLCHECK_OK)
		aclcheck_error(ACLCHECK_NO_PRIV, OBJECT_FUNCTION,
					   get_func_name(handler->function));
}

/* A decoded row as a value of the source's row type, as that is now. */
static Datum
row_value(MinimalTuple tuple, const SagaTracked *table,
		  const SagaTrackedRoot *root)
{
	TupleDesc	desc = lookup_rowtype_tupdesc(get_rel_type_id(root->root), -1);
	int			ncolumns = table->desc->natts;
	Datum	   *from = palloc(sizeof(Datum) * Max(ncolumns, 1));
	bool	   *from_null = palloc(sizeof(bool) * Max(ncolumns, 1));
	Datum	   *values = palloc0(sizeof(Datum) * Max(desc->natts, 1));
	bool	   *nulls = palloc(sizeof(bool) * Max(desc->natts, 1));
	HeapTupleData wrap = {0};
	Datum		row;

	wrap.t_len = tuple->t_len + MINIMAL_TUPLE_OFFSET;
	wrap.t_data = (HeapTupleHeader) ((char *) tuple - MINIMAL_TUPLE_OFFSET);
	heap_deform_tuple(&wrap, table->desc, from, from_null);
	for (int i = 0; i < desc->natts; i++)
	{
		Form_pg_attribute att = TupleDescAttr(desc, i);
		int			k = i + 1;

		nulls[i] = true;
		if (att->attisdropped)
			continue;
		if (root->map != NULL)
			k = i < root->map->maplen ? root->map->attnums[i] : 0;
		if (k == 0 || k > ncolumns)
		{
			/* a column that came after the row */
			values[i] = getmissingattr(desc, i + 1, &nulls[i]);
			continue;
		}
		if (TupleDescAttr(table->desc, k - 1)->atttypid != att->atttypid)
			ereport(ERROR,
					(errcode(ERRCODE_DATATYPE_MISMATCH),
					 errmsg("the type of column \"%s\" was changed after the row was",
							NameStr(att->attname))));
		values[i] = from[k - 1];
		nulls[i] = from_null[k - 1];
	}
	row = heap_copy_tuple_as_datum(heap_form_tuple(desc, values, nulls), desc);
	ReleaseTupleDesc(desc);
	return row;
}

/* Deferred triggers must not fire at commit, as the worker's superuser. */
static void
constraints_immediate(void)
{
	AfterTriggerSetState(makeNode(ConstraintsSetStmt));
}

static bool
is_asked_for(const SagaHandler *handler, const SagaFeedChange *change,
			 const char **operation)
{
	switch (change->op)
	{
		case SAGA_FEED_INSERT:
			*operation = "insert";
			return (handler->operations & SAGA_HANDLES_INSERT) != 0;
		case SAGA_FEED_UPDATE:
			*operation = "update";
			return (handler->operations & SAGA_HANDLES_UPDATE) != 0;
		case SAGA_FEED_DELETE:
			*operation = "delete";
			return (handler->operations & SAGA_HANDLES_DELETE) != 0;
	}
	return false;
}

static void
call_for(Calls *calls, const SagaFeedChange *change)
{
	LOCAL_FCINFO(fcinfo, 3);
	SagaTracked *table;
	SagaTrackedRoot *root = root_of(change->relid, calls->handler->source, &table);
	const char *operation;

	if (root == NULL || !is_asked_for(calls->handler, change, &operation))
		return;
	MemoryContextReset(calls->context);
	MemoryContextSwitchTo(calls->context);
	InitFunctionCallInfoData(*fcinfo, &calls->function, 3, InvalidOid, NULL, NULL);
	fcinfo->args[0].value = CStringGetTextDatum(operation);
	fcinfo->args[0].isnull = false;
	fcinfo->args[1].isnull = change->old_tuple == NULL;
	fcinfo->args[1].value = change->old_tuple == NULL ? (Datum) 0 :
		row_value(change->old_tuple, table, root);
	fcinfo->args[2].isnull = change->new_tuple == NULL;
	fcinfo->args[2].value = change->new_tuple == NULL ? (Datum) 0 :
		row_value(change->new_tuple, table, root);
	calls->row = fcinfo->args[change->new_tuple == NULL ? 1 : 2].value;
	calls->operation = operation;

	PushActiveSnapshot(GetTransactionSnapshot());
	(void) FunctionCallInvoke(fcinfo);
	PopActiveSnapshot();
	CommandCounterIncrement();	/* the next call sees what this one did */
	calls->operation = NULL;
	calls->calls++;
}

static void
call_for_all(Calls *calls)
{
	SagaHandler *handler = calls->handler;
	MemoryContext caller = CurrentMemoryContext;
	SagaFeedReader *reader;
	SagaFeedChange change;
	SagaUserSwitch save;

	/* then no change of the table was copied, not even its inserts */
	if (concerns(handler, calls->txn->incomplete))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("the old row of an update or delete is not in the WAL"),
				 errhint("Set REPLICA IDENTITY FULL for the table, then go past this transaction with saga.skip_handler_change().")));

	saga_run_as_begin(handler->owner, handler->search_path, &save);
	check_rights(handler);
	constraints_immediate();
	fmgr_info(handler->function, &calls->function);
	reader = saga_feed_read(calls->txn);
	while (saga_feed_next(reader, &change))
	{
		CHECK_FOR_INTERRUPTS();
		call_for(calls, &change);
		MemoryContextSwitchTo(caller);
	}
	saga_feed_read_end(reader);

	/* the function may have made them deferred again */
	constraints_immediate();
	saga_run_as_end(&save);
}

/* ------------------------------------------------------------------ errors */

/* In a subtransaction of its own: output functions are users' code, too. */
static void
describe_row(void *arg)
{
	Calls	   *calls = arg;
	SagaUserSwitch save;
	char	   *text;

	PushActiveSnapshot(GetTransactionSnapshot());
	saga_run_as_begin(calls->handler->owner, calls->handler->search_path, &save);
	text = OidOutputFunctionCall(F_RECORD_OUT, calls->row);
	saga_run_as_end(&save);
	PopActiveSnapshot();
	text[pg_mbcliplen(text, strlen(text), ROW_TEXT_LENGTH)] = '\0';
	calls->text = text;
}

static char *
reason_for(Calls *calls, const ErrorData *error)
{
	StringInfoData reason;

	initStringInfo(&reason);
	if (calls->operation != NULL)
	{
		calls->text = NULL;
		if (saga_try(describe_row, calls) == NULL && calls->text != NULL)
			appendStringInfo(&reason, "%s of %s in ", calls->operation, calls->text);
		else
			appendStringInfo(&reason, "%s of a row in ", calls->operation);
	}
	appendStringInfo(&reason, "transaction " UINT64_FORMAT ": %s",
					 U64FromFullTransactionId(calls->txn->xid), error->message);
	if (error->detail)
		appendStringInfo(&reason, " (%s)", error->detail);
	return reason.data;
}

static void
arm_limits(void)
{
	LockTimeout = HANDLER_LOCK_MS;
	enable_timeout_after(STATEMENT_TIMEOUT, HANDLER_TIMEOUT_MS);
}

static void
disarm_limits(void)
{
	disable_timeout(STATEMENT_TIMEOUT, false);
	LockTimeout = 0;
	QueryCancelPending = false;
}

static void
call_within_limits(void *arg)
{
	Calls	   *calls = arg;

	/* how many deaths that cost is counted as with projections */
	saga_quarantine_enter(SAGA_LANE_PROJECTOR, -calls->handler->id);
	arm_limits();
	call_for_all(calls);
	disarm_limits();
}

/* The calls in a subtransaction; the error, or NULL. */
static ErrorData *
try_calls(Calls *calls)
{
	ErrorData  *error = saga_in_subtransaction(call_within_limits, calls);

	if (error != NULL)
		disarm_limits();
	saga_quarantine_leave(SAGA_LANE_PROJECTOR);
	return error;
}

static SagaHandlerOutcome
handle(SagaHandler *handler, SagaFeedTxn *txn)
{
	MemoryContext caller = CurrentMemoryContext;
	MemoryContext context = AllocSetContextCreate(caller, "saga handler calls",
												  ALLOCSET_DEFAULT_SIZES);
	Calls		calls = {0};
	TimestampTz began = GetCurrentTimestamp();
	SagaHandlerOutcome outcome = SAGA_HANDLER_DONE;
	ErrorData  *error;

	calls.handler = handler;
	calls.txn = txn;
	calls.context = AllocSetContextCreate(context, "saga handler call",
										  ALLOCSET_DEFAULT_SIZES);
	MemoryContextSwitchTo(context);
	error = try_calls(&calls);
	if (error == NULL)
	{
		handler->position = txn->commit_lsn;
		handler->calls += calls.calls;
		handler->attempts = 0;
		handler->moved = true;
	}
	else if (error->sqlerrcode == ERRCODE_ADMIN_SHUTDOWN ||
			 (error->sqlerrcode == ERRCODE_QUERY_CANCELED &&
			  GetCurrentTimestamp() < began + HANDLER_TIMEOUT_MS * INT64CONST(1000)))
		ReThrowError(error);
	else if (error->sqlerrcode != ERRCODE_QUERY_CANCELED &&
			 saga_error_is_transient(error) &&
			 ++handler->attempts < HANDLER_ATTEMPTS)
		outcome = SAGA_HANDLER_AGAIN;
	else
	{
		if (error->context)
			ereport(LOG,
					(errmsg("handler \"%s\" failed: %s", handler->name, error->message),
					 errcontext("%s", error->context)));
		handler->poison = txn->commit_lsn;
		set_state(handler, SAGA_H_PARKED, reason_for(&calls, error),
				  saga_sqlstate_text(error->sqlerrcode));
		outcome = SAGA_HANDLER_PARKED;
	}
	MemoryContextSwitchTo(caller);
	MemoryContextDelete(context);
	return outcome;
}

SagaHandlerOutcome
saga_handler_follow(SagaHandler *handler, SagaFeed *feed, Datum snapshot)
{
	TimestampTz until = GetCurrentTimestamp() + HANDLER_TURN_US;
	SagaHandlerOutcome outcome = SAGA_HANDLER_DONE;
	dlist_iter	iter;

	if (!lock_row(handler))
		return SAGA_HANDLER_AGAIN;
	if (handler->state != SAGA_H_FOLLOWING)
		return SAGA_HANDLER_DONE;
	dlist_foreach(iter, &feed->txns)
	{
		SagaFeedTxn *txn = dlist_container(SagaFeedTxn, node, iter.cur);

		if (!saga_handler_keeps(handler, txn))
			continue;
		if (!saga_snapshot_sees(snapshot, txn->xid))
			break;
		if (GetCurrentTimestamp() >= until)
		{
			outcome = SAGA_HANDLER_MORE;
			break;
		}
		outcome = handle(handler, txn);
		if (outcome != SAGA_HANDLER_DONE)
			break;
	}
	store_row(handler);
	return outcome;
}
