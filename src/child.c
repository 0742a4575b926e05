/*
 * child.c
 *		Sub-sagas: starting, ending and undoing the saga that is a step of
 *		another (see child.h).
 *
 * A child is started by an executor, since checking its input may run code of
 * types; all else is done by the two coordinators.  Each tells the other by a
 * row of saga.inbox that is written with what it tells of, and looks at the
 * child's row to see what has become of it: a letter says that there is
 * something to see, not what.
 *
 *		child		   parent's step, forward		   ... while it is undone
 *		completed	   done, with the child's output   undo_child once more
 *		compensated	   declined, with its error		   undone
 *		terminated	   broken						   broken
 */
#include "postgres.h"

#include "common/hashfn.h"
#include "miscadmin.h"
#include "port/pg_bswap.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/snapmgr.h"

#include "compat.h"
#include "child.h"
#include "coordinator.h"
#include "errors.h"
#include "rows.h"
#include "spi_util.h"
#include "start.h"

/* The columns of saga.instance used here; see log.c. */
enum
{
	STATE = 3, OUTPUT = 8, SQLSTATE = 10, ERROR_TEXT = 11, CORRELATION = 12,
	PRIORITY = 14, DEADLINE = 18, DEPTH = 23, COPY_OF = 24
};

/* A child as its parent sees it. */
typedef struct Child
{
	bool		exists;
	SagaStateName state;
	pg_uuid_t	id;
	Jsonb	   *output;
	char	   *sqlstate;
	char	   *error;
} Child;

/*
 * The first 48 bits are the parent's, so that a range of ids is a range of
 * time; the rest is a digest of the parent's id and the step's name.
 */
void
saga_child_id(const pg_uuid_t *parent, const char *step, pg_uuid_t *id)
{
	const unsigned char *name = (const unsigned char *) step;
	uint64		seed = hash_bytes_extended(parent->data, UUID_LEN, 0);
	uint64		parts[2];

	parts[0] = pg_hton64(hash_bytes_extended(name, strlen(step), seed));
	parts[1] = pg_hton64(hash_bytes_extended(name, strlen(step), ~seed));
	memcpy(id->data, parent->data, 6);
	memcpy(id->data + 6, &parts[0], 2);
	memcpy(id->data + 8, &parts[1], 8);
	id->data[6] = 0x70 | (id->data[6] & 0x0f);
	id->data[8] = 0x80 | (id->data[8] & 0x3f);
}

/* ----------------------------------------------------------- an executor */

/* What the child has from its parent. */
static void
inherit(const pg_uuid_t *parent, SagaStartOptions *o)
{
	SagaTable  *table = saga_table_open("instance", AccessShareLock);
	Datum		key = UUIDPGetDatum(parent);
	Datum		v[SAGA_MAX_COLUMNS];
	bool		n[SAGA_MAX_COLUMNS];

	if (!saga_table_fetch(table, &key, v, n))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("the saga that calls is no more")));
	o->priority = DatumGetInt32(v[PRIORITY]);
	o->depth = DatumGetInt32(v[DEPTH]) + 1;
	if (!n[CORRELATION])
		o->correlation = DatumGetTextPCopy(v[CORRELATION]);
	if (!n[DEADLINE])
	{
		o->deadline_at = DatumGetTimestampTz(v[DEADLINE]);
		if (o->def->deadline != SAGA_NEVER)
			o->deadline_at = Min(o->deadline_at, GetCurrentTimestamp() + o->def->deadline);
	}
	saga_table_close(table);
	if (o->depth > SAGA_MAX_DEPTH)
		ereport(ERROR,
				(errcode(ERRCODE_SAGA_LIMIT),
				 errmsg("sub-sagas are nested too deeply"),
				 errdetail("At most %d can stand in one another.", SAGA_MAX_DEPTH)));
}

static bool
is_there(SagaTable *table, const pg_uuid_t *id)
{
	Datum		key = UUIDPGetDatum(id);
	Datum		v[SAGA_MAX_COLUMNS];
	bool		n[SAGA_MAX_COLUMNS];

	return saga_table_fetch(table, &key, v, n);
}

/*
 * With the rights of the parent's owner, as the newest version of the child's
 * definition.  Only the executors of one coordinator start this child, one
 * after the other, so looking for it is enough; the primary key is the second
 * line of defence.
 */
void
saga_child_start(const pg_uuid_t *parent, const char *step,
				 const SagaDefinition *def, const char *child, Jsonb *input)
{
	SagaStartOptions o = {0};
	SagaUserSwitch saved;
	SagaTable  *table = saga_table_open("instance", RowExclusiveLock);
	pg_uuid_t	id;

	saga_child_id(parent, step, &id);
	if (!is_there(table, &id))
	{
		saga_run_as_begin(def->owner, def->search_path, &saved);
		o.def = saga_definition_to_start(child, 0);
		inherit(parent, &o);
		o.protocol = o.def->protocol;
		o.parent_id = parent;
		o.parent_step = step;
		o.started_by = def->owner;
		saga_start_insert(table, &o, &id, saga_definition_check_input(o.def, input), NULL);
		saga_table_flush(table);
		saga_run_as_end(&saved);
	}
	saga_table_close(table);
}

/* ------------------------------------------------------------ the parent */

/*
 * The child of a step.  A fork has the results of the saga it was forked from,
 * and their children.
 */
static void
look_at_child(const SagaRun *run, const char *step, Child *child)
{
	SagaTable  *table;
	pg_uuid_t	parent = run->row.id;

	memset(child, 0, sizeof(*child));
	PushActiveSnapshot(GetLatestSnapshot());
	table = saga_table_open("instance", AccessShareLock);
	for (;;)
	{
		Datum		key = UUIDPGetDatum(&child->id);
		Datum		v[SAGA_MAX_COLUMNS];
		bool		n[SAGA_MAX_COLUMNS];

		saga_child_id(&parent, step, &child->id);
		if (saga_table_fetch(table, &key, v, n))
		{
			child->exists = true;
			child->state = saga_state_from_name(TextDatumGetCString(v[STATE]));
			child->output = n[OUTPUT] ? NULL : DatumGetJsonbPCopy(v[OUTPUT]);
			child->sqlstate = n[SQLSTATE] ? NULL : TextDatumGetCString(v[SQLSTATE]);
			child->error = n[ERROR_TEXT] ? NULL : TextDatumGetCString(v[ERROR_TEXT]);
			break;
		}
		key = UUIDPGetDatum(&parent);
		if (!saga_table_fetch(table, &key, v, n) || n[COPY_OF])
			break;
		parent = *DatumGetUUIDP(v[COPY_OF]);
	}
	saga_table_close(table);
	PopActiveSnapshot();
}

static void
tell(const SagaRun *run, const pg_uuid_t *to, const char *verb, const char *step,
	 const char *note)
{
	SagaMessage *m = SAGA_APPEND(saga_turn.messages, saga_turn.nmessages,
								 saga_turn.maxmessages);

	memset(m, 0, sizeof(*m));
	m->to = *to;
	m->from = run->row.id;
	m->verb = verb;
	m->step = step ? MemoryContextStrdup(saga_turn_context, step) : NULL;
	m->note = note;
	saga_turn_flush = true;
}

static SagaPayload *
new_payload(void)
{
	return MemoryContextAllocZero(saga_turn_context, sizeof(SagaPayload));
}

static const char *
describe(const Child *child, const char *what)
{
	char	   *id = DatumGetCString(DirectFunctionCall1(uuid_out, UUIDPGetDatum(&child->id)));

	return MemoryContextStrdup(saga_turn_context, psprintf("sub-saga %s %s", id, what));
}

/* What an ended child is to its parent's step. */
static SagaAnswerKind
answer_of(const Child *child, bool undo, SagaPayload *payload)
{
	switch (child->state)
	{
		case SAGA_COMPLETED:
			if (child->output)
			{
				payload->result = MemoryContextAlloc(saga_turn_context, VARSIZE(child->output));
				memcpy(payload->result, child->output, VARSIZE(child->output));
			}
			return SAGA_ANSWER_DONE;
		case SAGA_COMPENSATED:
			if (undo)
				return SAGA_ANSWER_DONE;
			strlcpy(payload->sqlstate, child->sqlstate ? child->sqlstate : "SGB01",
					sizeof(payload->sqlstate));
			payload->message = child->error ?
				MemoryContextStrdup(saga_turn_context, child->error) :
				describe(child, "was undone");
			return SAGA_ANSWER_DECLINED;
		default:
			strlcpy(payload->sqlstate, unpack_sql_state(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
					sizeof(payload->sqlstate));
			payload->message = describe(child, "was terminated");
			return SAGA_ANSWER_BROKEN;
	}
}

/* Is the step at its compensation? */
static bool
is_undoing(const SagaRun *run, int32 step)
{
	switch (run->state->steps[step].status)
	{
		case SAGA_STEP_UNDO_CALLING:
		case SAGA_STEP_UNDO_BACKOFF:
		case SAGA_STEP_UNDO_STUCK:
		case SAGA_STEP_UNDO_ACCEPTED:
			return true;
		default:
			return false;
	}
}

/* A child has ended, or has been found to have: its step's answer. */
void
saga_child_ended(SagaRun *run, const char *step)
{
	int32		number = saga_step_of_name(run, step);
	SagaEvent	event;
	SagaPayload *payload;
	Child		child;
	bool		undo;

	if (number < 0 || SAGA_STATE_ENDED(run->state->state))
		return;
	look_at_child(run, step, &child);
	if (!child.exists || !SAGA_STATE_ENDED(child.state))
		return;
	undo = is_undoing(run, number);
	if (undo && child.state == SAGA_COMPLETED)
	{
		/* it could not be cancelled any more, so it is undone now */
		tell(run, &child.id, SAGA_UNDO_CHILD, NULL, "its parent is undone");
		return;
	}
	payload = new_payload();
	memset(&event, 0, sizeof(event));
	event.kind = SAGA_EVENT_COMPLETED;
	event.op = undo ? SAGA_OP_UNDO : SAGA_OP_ACTION;
	event.node = number;
	event.answer = answer_of(&child, undo, payload);
	saga_run_feed(run, &event, payload);
}

/* A child that has completed cannot be undone: that is for an operator. */
void
saga_child_undo_refused(SagaRun *run, const char *step, const char *why)
{
	int32		number = saga_step_of_name(run, step);
	SagaPayload *payload = new_payload();
	SagaEvent	event;

	if (number < 0 || SAGA_STATE_ENDED(run->state->state))
		return;
	strlcpy(payload->sqlstate, unpack_sql_state(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			sizeof(payload->sqlstate));
	payload->message = MemoryContextStrdup(saga_turn_context,
										   psprintf("the sub-saga cannot be undone: %s", why));
	memset(&event, 0, sizeof(event));
	event.kind = SAGA_EVENT_COMPLETED;
	event.op = SAGA_OP_UNDO;
	event.node = number;
	event.answer = SAGA_ANSWER_BROKEN;
	saga_run_feed(run, &event, payload);
}

void
saga_child_started(SagaCallOut *call)
{
	SagaRun    *run = call->run;
	const char *step;

	if (run == NULL)
	{
		saga_call_done(call);
		return;
	}
	step = MemoryContextStrdup(saga_turn_context, saga_step_name(run, call->node));
	saga_run_answer(call, SAGA_ANSWER_ACCEPTED, false, new_payload());
	/* started before, it may have ended, and its letter may have been read */
	saga_child_ended(run, step);
}

void
saga_child_undo(SagaRun *run, SagaCallOut *call)
{
	SagaPayload *payload = new_payload();
	SagaAnswerKind answer;
	Child		child;

	look_at_child(run, saga_step_name(run, call->node), &child);
	if (!child.exists)
		answer = SAGA_ANSWER_DONE;	/* nor will it be: its start was awaited */
	else if (child.state == SAGA_COMPENSATED || child.state == SAGA_TERMINATED)
		answer = answer_of(&child, true, payload);
	else
	{
		tell(run, &child.id, SAGA_UNDO_CHILD, NULL, "its parent is undone");
		answer = SAGA_ANSWER_ACCEPTED;
	}
	saga_run_answer(call, answer, false, payload);
}

/*
 * A verb needs to know whether the child happened, and that it will not: one
 * that is live is undone (with a parent that is terminated: terminated), and
 * looked at again.
 */
void
saga_child_claim(SagaRun *run, SagaCallOut *call, SagaOp target)
{
	SagaPayload *payload = new_payload();
	SagaAnswerKind answer = SAGA_ANSWER_REFUSED;
	Child		child;

	look_at_child(run, saga_step_name(run, call->node), &child);
	if (child.exists && !SAGA_STATE_ENDED(child.state))
	{
		if (run->state->terminating)
			tell(run, &child.id, "terminate", NULL, "its parent is terminated");
		else
			tell(run, &child.id, SAGA_UNDO_CHILD, NULL, "its step is skipped");
		strlcpy(payload->sqlstate, unpack_sql_state(ERRCODE_OBJECT_IN_USE),
				sizeof(payload->sqlstate));
		payload->message = describe(&child, "has not ended yet");
		answer = SAGA_ANSWER_TRANSIENT;
	}
	else if (child.exists && (target == SAGA_OP_UNDO ? child.state == SAGA_COMPENSATED :
							  child.state == SAGA_COMPLETED))
		answer = answer_of(&child, target == SAGA_OP_UNDO, payload);
	saga_run_answer(call, answer, false, payload);
}

/* ------------------------------------------------------------- the child */

/* A parent wants its child undone, whatever it is at. */
void
saga_undo_child(SagaRun *run)
{
	SagaState  *state = run->state;
	SagaEvent	event;
	SagaPayload *payload = new_payload();

	payload->actor = "saga";
	payload->note = "its parent is undone";
	memset(&event, 0, sizeof(event));
	event.kind = SAGA_EVENT_VERB;
	event.verb = SAGA_STATE_ENDED(state->state) ? SAGA_VERB_UNDO_COMPLETED : SAGA_VERB_CANCEL;
	event.node = SAGA_NO_NODE;

	/*
	 * Past its pivot it goes on, and the parent asks again when it has
	 * completed.  One that has been undone or terminated tells its parent so
	 * once more, as every one does that is at its end in a turn.
	 */
	if (!saga_run_feed(run, &event, payload) && state->state == SAGA_COMPLETED &&
		run->row.has_parent)
	{
		tell(run, &run->row.parent_id, SAGA_UNDO_REFUSED, run->row.parent_step,
			 saga_machine_verb_refusal(state, SAGA_VERB_UNDO_COMPLETED, SAGA_NO_NODE, false));
		run->told = true;
	}
}

/* Children that a terminated saga leaves behind. */
static void
terminate_children(SagaRun *run)
{
	for (int32 i = 0; i < run->state->nsteps; i++)
	{
		const SagaStep *step = &run->state->steps[i];
		const SagaCall *action = run->def->action[step->node];
		Child		child;

		if (action == NULL || action->kind != SAGA_CALL_CHILD ||
			step->status == SAGA_STEP_IDLE || step->status == SAGA_STEP_UNDONE)
			continue;
		look_at_child(run, saga_step_name(run, i), &child);
		if (child.exists && !SAGA_STATE_ENDED(child.state))
			tell(run, &child.id, "terminate", NULL, "its parent was terminated");
	}
}

void
saga_child_tell(SagaRun *run)
{
	if (!SAGA_STATE_ENDED(run->state->state))
		return;
	if (run->row.has_parent)
		tell(run, &run->row.parent_id, SAGA_CHILD_ENDED, run->row.parent_step, NULL);
	if (run->state->state == SAGA_TERMINATED)
		terminate_children(run);
}
