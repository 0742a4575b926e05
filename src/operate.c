/*
 * operate.c
 *		The operator's verbs that do more than tell the machine: restart() and
 *		fork() make another saga, migrate() and set_step_options() change what
 *		a live one goes by.
 *
 * Runs in sessions.  Writes the rows of sagas that it makes, before anybody
 * else can see them, and saga.inbox; amend.c does the rest in the coordinator.
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/snapmgr.h"

#include "amend.h"
#include "compat.h"
#include "define.h"
#include "log.h"
#include "refold.h"
#include "rows.h"
#include "saga.h"
#include "spi_util.h"
#include "start.h"
#include "verbs.h"

PG_FUNCTION_INFO_V1(saga_command);
PG_FUNCTION_INFO_V1(saga_restart);
PG_FUNCTION_INFO_V1(saga_fork);

/* The columns of saga.instance used here; see log.c. */
enum
{
	DEFINITION = 2, STATE = 3, KEY = 6, INPUT = 7, CORRELATION = 12, LABELS = 13,
	PRIORITY = 14, PARENT = 21, PROTOCOL = 25
};

/* The saga a verb is about. */
typedef struct Subject
{
	pg_uuid_t	id;
	SagaDefinition *def;
	bool		ended;
	char	   *state;
	text	   *key;
	Jsonb	   *input;
	text	   *correlation;
	Jsonb	   *labels;
	int			priority;
	bool		has_parent;
	bool		two_phase;
} Subject;

static char *
id_text(const pg_uuid_t *id)
{
	return DatumGetCString(DirectFunctionCall1(uuid_out, UUIDPGetDatum(id)));
}

/* 42704, 42501 as for every verb. */
static void
find_subject(const pg_uuid_t *id, Subject *s)
{
	SagaLooked	looked;
	SagaTable  *table;
	Datum		key = UUIDPGetDatum(id);
	Datum		v[SAGA_MAX_COLUMNS];
	bool		n[SAGA_MAX_COLUMNS];

	saga_look(id, "operate", &looked);
	memset(s, 0, sizeof(*s));
	s->id = *id;
	s->ended = looked.ended;
	s->def = saga_definition_by_id(looked.definition_id);
	PushActiveSnapshot(GetLatestSnapshot());
	table = saga_table_open("instance", AccessShareLock);
	if (s->def == NULL || !saga_table_fetch(table, &key, v, n))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("saga %s does not exist", id_text(id))));
	s->state = TextDatumGetCString(v[STATE]);
	s->key = n[KEY] ? NULL : DatumGetTextPCopy(v[KEY]);
	s->input = DatumGetJsonbPCopy(v[INPUT]);
	s->correlation = n[CORRELATION] ? NULL : DatumGetTextPCopy(v[CORRELATION]);
	s->labels = n[LABELS] ? NULL : DatumGetJsonbPCopy(v[LABELS]);
	s->priority = DatumGetInt32(v[PRIORITY]);
	s->has_parent = !n[PARENT];
	s->two_phase = strcmp(TextDatumGetCString(v[PROTOCOL]), "two_phase") == 0;
	saga_table_close(table);
	PopActiveSnapshot();
}

static Datum
answer(const Subject *s, const char *verb, const char *why, bool strict)
{
	if (why && strict)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("cannot %s saga %s: %s", verb, id_text(&s->id), why)));
	return CStringGetTextDatum(why ? psprintf("ignored: %s", why) : "queued");
}

static void
leave_command(const Subject *s, const char *verb, const char *step, Jsonb *result,
			  bool has_value, int64 value, text *reason)
{
	Oid			types[8] = {UUIDOID, INT2OID, TEXTOID, TEXTOID, JSONBOID, TEXTOID, TEXTOID, INT8OID};
	Datum		values[8];
	char		nulls[9] = "        ";
	Datum		inbox_id;
	bool		isnull;

	values[0] = UUIDPGetDatum(&s->id);
	values[1] = Int16GetDatum(saga_bucket(&s->id));
	values[2] = CStringGetTextDatum(verb);
	nulls[3] = step ? ' ' : 'n';
	values[3] = step ? CStringGetTextDatum(step) : (Datum) 0;
	nulls[4] = result ? ' ' : 'n';
	values[4] = result ? JsonbPGetDatum(result) : (Datum) 0;
	values[5] = CStringGetTextDatum(saga_actor());
	nulls[6] = reason ? ' ' : 'n';
	values[6] = PointerGetDatum(reason);
	nulls[7] = has_value ? ' ' : 'n';
	values[7] = Int64GetDatum(value);
	saga_spi_own("INSERT INTO saga.inbox (saga_id, bucket, verb, step, result, actor, note, value)"
				 " VALUES ($1, $2, $3, $4, $5, $6, $7, $8) RETURNING id",
				 8, types, values, nulls, &inbox_id, &isnull);
	saga_wake_at_commit(&s->id, DatumGetInt64(inbox_id), 0);
}

/* Of the step's name, without the number of its run. */
static int
require_step(const SagaDefinition *def, const char *step)
{
	int			node = saga_definition_node(def, pnstrdup(step, strcspn(step, "[~")));

	if (node == SAGA_NO_NODE)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("version %d of saga \"%s\" has no step \"%s\"", def->version, def->name, step),
				 errhint("saga.steps lists them.")));
	return node;
}

/* The whole log, as committed now. */
static List *
read_log(const pg_uuid_t *id)
{
	SagaUserSwitch saved;
	MemoryContext context = CurrentMemoryContext;
	List	   *entries;
	List	   *copy = NIL;
	ListCell   *cell;

	PushActiveSnapshot(GetLatestSnapshot());
	saga_as_extension_owner_begin(&saved);
	SPI_connect();
	MemoryContextSwitchTo(context);
	entries = saga_log_read(id);
	foreach(cell, entries)
		copy = lappend(copy, lfirst(cell));
	SPI_finish();
	saga_as_extension_owner_end(&saved);
	PopActiveSnapshot();
	return copy;
}

/* ------------------------------------------------------- another version */

/* The version to go on with: the newest, unless one is given. */
static SagaDefinition *
target_version(const Subject *s, int version)
{
	SagaDefinition *def = saga_definition_for_start(s->def->name, version);

	if (def == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("version %d of saga \"%s\" is not defined", version, s->def->name),
				 errhint("saga.definitions lists them.")));
	return def;
}

static const char *
why_not_migrate(const Subject *s, SagaDefinition *to)
{
	SagaState  *state;

	if (s->ended)
		return "the saga has ended";
	if (to->id == s->def->id)
		return psprintf("the saga runs version %d already", to->version);
	if (s->two_phase)
		return "the saga runs by two-phase commit";
	if (strcmp(s->state, "pending") == 0)
		return "the saga has not begun";
	if (strcmp(s->state, "running") == 0)
		return "the saga is running; pause it first";
	return saga_refold(s->def, to, read_log(&s->id), &state);
}

/* ----------------------------------------------------------- commands */

/*
 * command(id, verb, step, result, value, reason, strict): of the verbs that
 * carry more than a step.  What 'value' is, is the verb's: a time, a version,
 * yes or no.
 */
Datum
saga_command(PG_FUNCTION_ARGS)
{
	char	   *verb = text_to_cstring(PG_GETARG_TEXT_PP(1));
	char	   *step = PG_ARGISNULL(2) ? NULL : text_to_cstring(PG_GETARG_TEXT_PP(2));
	Jsonb	   *result = PG_ARGISNULL(3) ? NULL : PG_GETARG_JSONB_P(3);
	bool		has_value = !PG_ARGISNULL(4);
	int64		value = has_value ? PG_GETARG_INT64(4) : 0;
	text	   *reason = PG_ARGISNULL(5) ? NULL : PG_GETARG_TEXT_PP(5);
	bool		strict = !PG_ARGISNULL(6) && PG_GETARG_BOOL(6);
	const char *why = NULL;
	Subject		s;

	saga_require_preload();
	if (PG_ARGISNULL(0))
		PG_RETURN_NULL();
	find_subject(PG_GETARG_UUID_P(0), &s);
	if (step)
		(void) require_step(s.def, step);
	if (s.ended)
		why = "the saga has ended";
	else if (strcmp(verb, "migrate") == 0)
	{
		SagaDefinition *to = target_version(&s, has_value ? (int) value : 0);

		why = why_not_migrate(&s, to);
		has_value = true;
		value = to->id;
	}
	else if (strcmp(verb, "set_step_options") == 0)
	{
		saga_amend_check_options(result);
		if (s.two_phase)
			why = "the saga runs by two-phase commit";
		else if (strcmp(s.state, "pending") == 0)
			why = "the saga has not begun";
	}
	if (why == NULL)
		leave_command(&s, verb, step, result, has_value, value, reason);
	return answer(&s, verb, why, strict);
}

/* --------------------------------------------------------- another saga */

/* The key of an ended saga goes to the one that does its work again. */
static const char *
take_key(const Subject *s, const pg_uuid_t *id)
{
	Oid			types[4] = {TEXTOID, TEXTOID, UUIDOID, UUIDOID};
	Datum		values[4];

	if (s->key == NULL)
		return NULL;
	values[0] = CStringGetTextDatum(s->def->name);
	values[1] = PointerGetDatum(s->key);
	values[2] = UUIDPGetDatum(&s->id);
	values[3] = UUIDPGetDatum(id);
	if (saga_spi_own("INSERT INTO saga.instance_key AS k (name, key, saga_id) VALUES ($1, $2, $4)"
					 " ON CONFLICT (name, key) DO UPDATE SET saga_id = $4 WHERE k.saga_id = $3",
					 4, types, values, NULL, NULL, NULL) == 0)
		return "its key has been given to another saga";
	return NULL;
}

static const char *
why_not_again(const Subject *s)
{
	if (s->has_parent)
		return "it is a sub-saga; run the step of its parent again";
	return NULL;
}

static void
copy_options(const Subject *s, SagaDefinition *def, SagaStartOptions *o)
{
	memset(o, 0, sizeof(*o));
	o->def = def;
	o->priority = s->priority;
	o->correlation = s->correlation;
	o->labels = s->labels;
	o->copy_of = &s->id;
	o->started_by = GetUserId();
	o->protocol = s->two_phase && def->two_phase ? SAGA_PROTOCOL_TWO_PHASE : SAGA_PROTOCOL_SAGA;
}

static SagaLogEntry *
first_entry(void)
{
	SagaLogEntry *entry = palloc0(sizeof(SagaLogEntry));

	entry->record.seq = 1;
	entry->record.kind = SAGA_RECORD_STARTED;
	entry->record.node = SAGA_NO_NODE;
	entry->at = GetCurrentTimestamp();
	return entry;
}

/*
 * Another saga with the same input, whose log begins with these entries.  The
 * first one says who made it, from what, and why.
 */
static const char *
make_copy(const Subject *s, SagaDefinition *to, List *entries, const char *how,
		  bool with_key, text *reason)
{
	SagaStartOptions o;
	SagaTurn	turn;
	SagaState  *state;
	pg_uuid_t	id;
	SagaTable  *table;
	SagaUserSwitch saved;
	SagaLogEntry *first = linitial(entries);
	const char *why = saga_refold(s->def, to, entries, &state);
	ListCell   *cell;

	if (why == NULL && to->paused)
		why = "its definition is paused";
	saga_new_id(&id);
	if (why == NULL && with_key)
		why = take_key(s, &id);
	if (why)
		return why;
	memset(&first->payload, 0, sizeof(first->payload));
	first->payload.actor = saga_actor();
	first->payload.note = psprintf("%s %s%s%s", how, id_text(&s->id), reason ? ": " : "",
								   reason ? text_to_cstring(reason) : "");
	memset(&turn, 0, sizeof(turn));
	turn.nentries = list_length(entries);
	turn.entries = palloc(sizeof(SagaLogEntry) * turn.nentries);
	foreach(cell, entries)
	{
		SagaLogEntry *entry = &turn.entries[foreach_current_index(cell)];

		*entry = *(SagaLogEntry *) lfirst(cell);
		entry->saga_id = id;
	}
	copy_options(s, to, &o);
	o.state = saga_state_name(state->state);
	table = saga_table_open("instance", RowExclusiveLock);
	saga_start_insert(table, &o, &id, saga_definition_check_input(to, s->input),
					  with_key ? s->key : NULL);
	saga_table_close(table);
	saga_as_extension_owner_begin(&saved);
	saga_log_write(&turn);
	saga_as_extension_owner_end(&saved);
	return NULL;
}

/* restart(id, version, reason, strict) */
Datum
saga_restart(PG_FUNCTION_ARGS)
{
	bool		strict = !PG_ARGISNULL(3) && PG_GETARG_BOOL(3);
	Subject		s;
	const char *why;

	saga_require_preload();
	if (PG_ARGISNULL(0))
		PG_RETURN_NULL();
	find_subject(PG_GETARG_UUID_P(0), &s);
	why = s.ended ? why_not_again(&s) : "the saga has not ended";
	if (why == NULL)
		why = make_copy(&s, target_version(&s, PG_ARGISNULL(1) ? 0 : PG_GETARG_INT32(1)),
						list_make1(first_entry()), "restarted from", true,
						PG_ARGISNULL(2) ? NULL : PG_GETARG_TEXT_PP(2));
	return answer(&s, "restart", why, strict);
}

/* fork(id, step, version, reason, strict) */
Datum
saga_fork(PG_FUNCTION_ARGS)
{
	bool		strict = !PG_ARGISNULL(4) && PG_GETARG_BOOL(4);
	Subject		s;
	const char *why = NULL;

	saga_require_preload();
	if (PG_ARGISNULL(0))
		PG_RETURN_NULL();
	if (PG_ARGISNULL(1))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("the step to fork from must not be null")));
	find_subject(PG_GETARG_UUID_P(0), &s);
	if (!s.ended && strcmp(s.state, "paused") != 0)
		why = "the saga has neither ended nor is it paused";
	else if (s.two_phase)
		why = "the saga runs by two-phase commit";
	else
		why = why_not_again(&s);
	if (why == NULL)
	{
		char	   *step = text_to_cstring(PG_GETARG_TEXT_PP(1));
		SagaDefinition *to = target_version(&s, PG_ARGISNULL(2) ? 0 : PG_GETARG_INT32(2));
		List	   *kept;
		char	   *problem;

		(void) require_step(s.def, step);
		(void) require_step(to, step);
		kept = saga_refold_up_to(s.def, to, read_log(&s.id), step, &problem);
		why = problem ? problem :
			make_copy(&s, to, kept, "forked from", false,
					  PG_ARGISNULL(3) ? NULL : PG_GETARG_TEXT_PP(3));
	}
	return answer(&s, "fork", why, strict);
}
