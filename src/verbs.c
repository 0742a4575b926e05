/*
 * verbs.c
 *		Sessions look at sagas and act on them: wait(), wait_any(), status(), and the
 *		operator's verbs, which leave a command in the inbox.
 *
 * Writes nothing but saga.inbox.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/xact.h"
#include "catalog/pg_type.h"
#include "fmgr.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"
#include "utils/wait_event.h"

#include "compat.h"
#include "definition.h"
#include "errors.h"
#include "guc.h"
#include "rights.h"
#include "rows.h"
#include "saga.h"
#include "spi_util.h"
#include "verbs.h"

PG_FUNCTION_INFO_V1(saga_wait);
PG_FUNCTION_INFO_V1(saga_wait_any);
PG_FUNCTION_INFO_V1(saga_status);
PG_FUNCTION_INFO_V1(saga_verb);

/* A wait looks at the row this often even if nobody wakes it. */
#define WAIT_LOOK_MS	1000

/* More than these at a time are only looked at now and then. */
#define MAX_WAITERS		64

/* The columns of saga.instance used here. */
enum
{
	DEFINITION = 2, STATE = 3, DIRECTION = 4, CAUSE = 5, OUTPUT = 8,
	FAILED_STEP = 9, SQLSTATE = 10, ERROR_TEXT = 11, STARTED_BY = 15, ENDED_AT = 19,
	PROTOCOL = 25
};

typedef struct Look
{
	bool		found;
	bool		ours;			/* written by this very transaction */
	bool		ended;
	Datum		values[SAGA_MAX_COLUMNS];
	bool		nulls[SAGA_MAX_COLUMNS];
} Look;

static char *
id_text(const pg_uuid_t *id)
{
	return DatumGetCString(DirectFunctionCall1(uuid_out, UUIDPGetDatum(id)));
}

/* As committed now, whatever snapshot the caller's statement has. */
static void
look_once(const pg_uuid_t *id, Look *look)
{
	SagaTable  *table;
	Datum		key = UUIDPGetDatum(id);

	PushActiveSnapshot(GetLatestSnapshot());
	table = saga_table_open("instance", AccessShareLock);
	look->found = saga_table_fetch(table, &key, look->values, look->nulls);
	look->ours = look->found && saga_table_fetched_is_ours(table);
	if (look->found)
	{
		/* out of the buffer before the table is closed */
		look->ended = !look->nulls[ENDED_AT];
		look->values[STATE] = PointerGetDatum(DatumGetTextPCopy(look->values[STATE]));
		look->values[DIRECTION] = PointerGetDatum(DatumGetTextPCopy(look->values[DIRECTION]));
		look->values[PROTOCOL] = PointerGetDatum(DatumGetTextPCopy(look->values[PROTOCOL]));
		for (int i = CAUSE; i <= ERROR_TEXT; i++)
			if (!look->nulls[i] && (i == CAUSE || i == OUTPUT || i >= FAILED_STEP))
				look->values[i] = PointerGetDatum(DatumGetTextPCopy(look->values[i]));
	}
	saga_table_close(table);
	PopActiveSnapshot();
}

static void
look_at(const pg_uuid_t *id, Look *look)
{
	look_once(id, look);
	if (!look->found)
	{
		/* started by the caller's own statement? */
		CommandCounterIncrement();
		look_once(id, look);
	}
}

/* The name alone: a definition that no longer compiles must not be in the way. */
static char *
definition_name(int64 id)
{
	SagaTable  *table;
	Datum		key = Int64GetDatum(id);
	Datum		values[SAGA_MAX_COLUMNS];
	bool		nulls[SAGA_MAX_COLUMNS];
	char	   *name = NULL;

	PushActiveSnapshot(GetLatestSnapshot());
	table = saga_table_open("definition", AccessShareLock);
	if (saga_table_fetch(table, &key, values, nulls))
		name = TextDatumGetCString(values[1]);
	saga_table_close(table);
	PopActiveSnapshot();
	return name;
}

/* Error unless the caller has the privilege; returns the definition's name. */
static char *
check_right(const pg_uuid_t *id, const Look *look, const char *privilege)
{
	char	   *name = NULL;

	if (look->found)
		name = definition_name(DatumGetInt64(look->values[DEFINITION]));
	if (name == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("saga %s does not exist", id_text(id))));
	if (strcmp(privilege, "see") == 0 &&
		DatumGetObjectId(look->values[STARTED_BY]) == GetUserId())
		return name;
	if (!saga_has_privilege(name, GetUserId(), privilege))
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("permission denied for saga %s", id_text(id)),
				 errdetail("It is an instance of saga \"%s\", for which you lack the privilege \"%s\".",
						   name, privilege)));
	return name;
}

bool
saga_look_quietly(const pg_uuid_t *id, SagaLooked *saga)
{
	Look		look;

	memset(saga, 0, sizeof(*saga));
	look_at(id, &look);
	if (look.found)
	{
		saga->definition_id = DatumGetInt64(look.values[DEFINITION]);
		saga->name = definition_name(saga->definition_id);
		saga->ended = look.ended;
	}
	return look.found;
}

void
saga_look(const pg_uuid_t *id, const char *privilege, SagaLooked *saga)
{
	Look		look;

	look_at(id, &look);
	saga->name = check_right(id, &look, privilege);
	saga->definition_id = DatumGetInt64(look.values[DEFINITION]);
	saga->ended = look.ended;
}

static Datum
outcome(FunctionCallInfo fcinfo, const pg_uuid_t *id, const Look *look)
{
	TupleDesc	desc;
	Datum		v[8];
	bool		n[8] = {0};

	if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	v[0] = UUIDPGetDatum(id);
	v[1] = look->values[STATE];
	v[2] = BoolGetDatum(look->ended);
	v[3] = look->values[CAUSE];
	n[3] = look->nulls[CAUSE];
	v[4] = look->values[OUTPUT];
	n[4] = look->nulls[OUTPUT];
	v[5] = look->values[FAILED_STEP];
	n[5] = look->nulls[FAILED_STEP];
	v[6] = look->values[SQLSTATE];
	n[6] = look->nulls[SQLSTATE];
	v[7] = look->values[ERROR_TEXT];
	n[7] = look->nulls[ERROR_TEXT];
	return HeapTupleGetDatum(heap_form_tuple(BlessTupleDesc(desc), v, n));
}

Datum
saga_status(PG_FUNCTION_ARGS)
{
	pg_uuid_t  *id = PG_GETARG_UUID_P(0);
	Look		look;

	look_at(id, &look);
	check_right(id, &look, "see");
	return outcome(fcinfo, id, &look);
}

static void
refuse_useless_wait(const pg_uuid_t *id, const Look *look)
{
	if (look->ours)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("saga %s cannot end before this transaction has committed", id_text(id)),
				 errhint("Commit first, then wait for it.")));
	if (IsolationUsesXactSnapshot())
		ereport(ERROR,
				(errcode(ERRCODE_ACTIVE_SQL_TRANSACTION),
				 errmsg("waiting for a saga needs transaction isolation level READ COMMITTED"),
				 errdetail("What the saga does meanwhile is invisible to this transaction's snapshot.")));
}

/* The sagas that a session waits for. */
typedef struct Waiting
{
	int			n;
	const pg_uuid_t *ids;
	int			nwaiters;
	SagaWaiter *waiters[MAX_WAITERS];
} Waiting;

/* Also when the session is terminated. */
static void
stop_waiting(int code, Datum arg)
{
	Waiting    *w = (Waiting *) DatumGetPointer(arg);

	for (int i = 0; i < w->nwaiters; i++)
		saga_waiter_forget(w->waiters[i]);
	w->nwaiters = 0;
}

/* The one that ended first, or -1; *look is then its row, else the last one's. */
static int
first_ended(const Waiting *w, Look *look)
{
	TimestampTz earliest = 0;
	int			first = -1;

	for (int i = 0; i < w->n; i++)
	{
		look_at(&w->ids[i], look);
		if (!look->found)
			check_right(&w->ids[i], look, "see");
		if (look->ended &&
			(first < 0 || DatumGetTimestampTz(look->values[ENDED_AT]) < earliest))
		{
			first = i;
			earliest = DatumGetTimestampTz(look->values[ENDED_AT]);
		}
	}
	if (first >= 0 && first < w->n - 1)
		look_at(&w->ids[first], look);
	return first;
}

static int
wait_for(Waiting *w, TimestampTz until, Look *look)
{
	int			first;

	for (int i = 0; i < Min(w->n, MAX_WAITERS); i++)
	{
		SagaWaiter *waiter = saga_waiter_register(&w->ids[i]);

		if (waiter == NULL)
			break;				/* no place: looks now and then */
		w->waiters[w->nwaiters++] = waiter;
	}
	for (;;)
	{
		long		left;

		ResetLatch(MyLatch);
		CHECK_FOR_INTERRUPTS();
		first = first_ended(w, look);	/* after the registration: nothing is
										 * missed */
		left = TimestampDifferenceMilliseconds(GetCurrentTimestamp(), until);
		if (first >= 0 || left <= 0)
			return first;
		(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
						 Min(left, WAIT_LOOK_MS), saga_wait_event("SagaWait"));
	}
}

/* Until one has ended, or the time-out; its number, or -1. */
static int
wait_for_first(const pg_uuid_t *ids, int n, Interval *timeout, Look *look)
{
	Waiting		w = {n, ids, 0, {NULL}};
	TimestampTz until;
	int			first;

	saga_require_preload();
	for (int i = 0; i < n; i++)
	{
		look_at(&ids[i], look);
		check_right(&ids[i], look, "see");
		refuse_useless_wait(&ids[i], look);
	}
	until = DatumGetTimestampTz(DirectFunctionCall2(timestamptz_pl_interval,
													TimestampTzGetDatum(GetCurrentTimestamp()),
													IntervalPGetDatum(timeout)));
	PG_ENSURE_ERROR_CLEANUP(stop_waiting, PointerGetDatum(&w));
	{
		first = wait_for(&w, until, look);
	}
	PG_END_ENSURE_ERROR_CLEANUP(stop_waiting, PointerGetDatum(&w));
	stop_waiting(0, PointerGetDatum(&w));
	SetLatch(MyLatch);			/* somebody else's wake-up may be among them */
	return first;
}

Datum
saga_wait(PG_FUNCTION_ARGS)
{
	pg_uuid_t  *id = PG_GETARG_UUID_P(0);
	Look		look;

	(void) wait_for_first(id, 1, PG_GETARG_INTERVAL_P(1), &look);
	return outcome(fcinfo, id, &look);
}

/* wait_any(ids, timeout) -> the outcome of the first that ended */
Datum
saga_wait_any(PG_FUNCTION_ARGS)
{
	ArrayType  *array = PG_GETARG_ARRAYTYPE_P(0);
	Datum	   *elems;
	bool	   *nulls;
	int			n;
	pg_uuid_t  *ids;
	int			first;
	Look		look;

	deconstruct_array(array, UUIDOID, UUID_LEN, false, TYPALIGN_CHAR, &elems, &nulls, &n);
	if (n == 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("there is no saga to wait for")));
	ids = palloc(sizeof(pg_uuid_t) * n);
	for (int i = 0; i < n; i++)
	{
		if (nulls[i])
			ereport(ERROR,
					(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
					 errmsg("the id of a saga must not be null")));
		ids[i] = *DatumGetUUIDP(elems[i]);
	}
	first = wait_for_first(ids, n, PG_GETARG_INTERVAL_P(1), &look);
	if (first < 0)
	{
		TupleDesc	desc;
		Datum		v[8] = {0};
		bool		isnull[8];

		if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE)
			elog(ERROR, "return type must be a row type");
		memset(isnull, true, sizeof(isnull));
		v[2] = BoolGetDatum(false);
		isnull[2] = false;
		return HeapTupleGetDatum(heap_form_tuple(BlessTupleDesc(desc), v, isnull));
	}
	return outcome(fcinfo, &ids[first], &look);
}

/* ---------------------------------------------------------------- verbs */

char *
saga_actor(void)
{
	char	   *role = GetUserNameFromId(GetSessionUserId(), false);

	return saga_operator && saga_operator[0] ? psprintf("%s (%s)", role, saga_operator) : role;
}

static bool
is_two_phase(const Look *look)
{
	return strcmp(TextDatumGetCString(look->values[PROTOCOL]), "two_phase") == 0;
}

static SagaDefinition *
definition_of(const Look *look)
{
	SagaDefinition *def = saga_definition_by_id(DatumGetInt64(look->values[DEFINITION]));

	return is_two_phase(look) ? def->two_phase : def;
}

/* Would skipping the step, or doing it again, break what two-phase commit is? */
static bool
breaks_two_phase(const Look *look, const char *verb, const char *step, bool undo)
{
	if (!is_two_phase(look) || step == NULL || strcmp(step, "$end") == 0)
		return false;
	return strcmp(verb, "rerun_from") == 0 ||
		(strcmp(verb, "skip_step") == 0 && !undo &&
		 strncmp(step, "commit_", 7) != 0);
}

/* Why the verb can have no effect, or NULL; a first look, the coordinator's counts. */
static const char *
why_ignored(const Look *look, const char *verb, const char *step)
{
	bool		undo = strcmp(TextDatumGetCString(look->values[DIRECTION]), "undo") == 0;

	if (!look->ended && breaks_two_phase(look, verb, step, undo))
		return "under two-phase commit nobody can vote or decide in place of another";

	if (look->ended)
		return "the saga has ended";
	if (strcmp(verb, "cancel") == 0 && undo)
		return "the saga is being undone already";
	return NULL;
}

/* verb(id, verb, step, result, force, reason, strict) */
Datum
saga_verb(PG_FUNCTION_ARGS)
{
	pg_uuid_t  *id;
	char	   *verb = text_to_cstring(PG_GETARG_TEXT_PP(1));
	char	   *step = PG_ARGISNULL(2) ? NULL : text_to_cstring(PG_GETARG_TEXT_PP(2));
	bool		strict = !PG_ARGISNULL(6) && PG_GETARG_BOOL(6);
	char	   *name;
	Look		look;
	const char *why;
	Oid			types[8] = {UUIDOID, INT2OID, TEXTOID, TEXTOID, JSONBOID, BOOLOID, TEXTOID, TEXTOID};
	Datum		values[8];
	char		nulls[9] = "        ";
	Datum		inbox_id;
	bool		isnull;

	saga_require_preload();
	if (PG_ARGISNULL(0))
		PG_RETURN_NULL();
	id = PG_GETARG_UUID_P(0);
	look_at(id, &look);
	name = check_right(id, &look, "operate");
	if (step && strcmp(step, "$end") != 0 &&
		saga_definition_node(definition_of(&look), pnstrdup(step, strcspn(step, "[~"))) == SAGA_NO_NODE)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("saga \"%s\" has no step \"%s\"", name, step),
				 errhint("saga.steps lists them.")));
	why = why_ignored(&look, verb, step);
	if (why && strict)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("cannot %s saga %s: %s", verb, id_text(id), why)));
	if (why)
		PG_RETURN_TEXT_P(cstring_to_text(psprintf("ignored: %s", why)));

	values[0] = UUIDPGetDatum(id);
	values[1] = Int16GetDatum(saga_bucket(id));
	values[2] = CStringGetTextDatum(verb);
	nulls[3] = step ? ' ' : 'n';
	values[3] = step ? CStringGetTextDatum(step) : (Datum) 0;
	nulls[4] = PG_ARGISNULL(3) ? 'n' : ' ';
	values[4] = PG_GETARG_DATUM(3);
	values[5] = BoolGetDatum(!PG_ARGISNULL(4) && PG_GETARG_BOOL(4));
	values[6] = CStringGetTextDatum(saga_actor());
	nulls[7] = PG_ARGISNULL(5) ? 'n' : ' ';
	values[7] = PG_GETARG_DATUM(5);
	saga_spi_own("INSERT INTO saga.inbox (saga_id, bucket, verb, step, result, force, actor, note)"
				 " VALUES ($1, $2, $3, $4, $5, $6, $7, $8) RETURNING id",
				 8, types, values, nulls, &inbox_id, &isnull);
	saga_wake_at_commit(id, DatumGetInt64(inbox_id), 0);
	PG_RETURN_TEXT_P(cstring_to_text("queued"));
}
