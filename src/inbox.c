/*
 * inbox.c
 *		What sessions left for a coordinator's sagas in saga.inbox: operators'
 *		verbs, signals, answers of steps that were taken on.
 *
 * Called by runs.c, in a transaction.  A row is deleted in the turn that has
 * what came of it; one whose handling raised an error stays for the next
 * safety poll.  Decides nothing: events go to turn.c.
 */
#include "postgres.h"

#include "utils/builtins.h"
#include "utils/hsearch.h"
#include "utils/memutils.h"

#include "amend.h"
#include "child.h"
#include "compat.h"
#include "coordinator.h"
#include "signals.h"

static HTAB *taken;				/* ids of rows taken, until they are deleted */
static SagaRingEntry *deferred; /* to be taken in the next turn; in the turn's
								 * memory */
static int	ndeferred = 0,
			maxdeferred = 0;

static void
forget_taken(void)
{
	HASHCTL		ctl;

	if (taken)
		hash_destroy(taken);
	memset(&ctl, 0, sizeof(ctl));
	ctl.keysize = ctl.entrysize = sizeof(int64);
	taken = hash_create("saga commands taken", 64, &ctl, HASH_ELEM | HASH_BLOBS);
}

void
saga_inbox_init(void)
{
	forget_taken();
}

/* Not before the turn is written. */
static void
defer(const SagaInboxRow *row)
{
	SagaRingEntry *entry = SAGA_APPEND(deferred, ndeferred, maxdeferred);

	entry->saga_id = row->saga_id;
	entry->inbox_id = row->id;
}

/* The turn is written, and with it the rows of its commands are gone. */
void
saga_commands_written(void)
{
	for (int i = 0; i < ndeferred; i++)
		saga_arrive(&deferred[i].saga_id, deferred[i].inbox_id, 0);
	deferred = NULL;
	ndeferred = maxdeferred = 0;
	if (hash_get_num_entries(taken) > 0)
		forget_taken();
}

static bool
is_taken(int64 inbox_id)
{
	return hash_search(taken, &inbox_id, HASH_FIND, NULL) != NULL;
}

static void
consumed(int64 inbox_id, bool flush)
{
	(void) hash_search(taken, &inbox_id, HASH_ENTER, NULL);
	*SAGA_APPEND(saga_turn.inbox, saga_turn.ninbox, saga_turn.maxinbox) = inbox_id;
	if (saga_turn_since == 0)
		saga_turn_since = saga_now();
	saga_turn_flush |= flush;
}

static char *
keep(const char *text)
{
	return text ? MemoryContextStrdup(saga_turn_context, text) : NULL;
}

static Jsonb *
keep_json(const Jsonb *value)
{
	Jsonb	   *copy;

	if (value == NULL)
		return NULL;
	copy = MemoryContextAlloc(saga_turn_context, VARSIZE(value));
	memcpy(copy, value, VARSIZE(value));
	return copy;
}

static SagaPayload *
payload_of(const SagaInboxRow *row)
{
	SagaPayload *payload = MemoryContextAllocZero(saga_turn_context, sizeof(SagaPayload));

	payload->actor = keep(row->actor);
	payload->note = keep(row->note);
	payload->result = keep_json(row->result);
	return payload;
}

/* ---------------------------------------------------------------- verbs */

static SagaVerb
verb_of(const char *name)
{
	for (int v = SAGA_VERB_CANCEL; v <= SAGA_VERB_UNDO_COMPLETED; v++)
		if (saga_verb_name(v) && strcmp(saga_verb_name(v), name) == 0)
			return v;
	ereport(ERROR,
			(errcode(ERRCODE_DATA_CORRUPTED),
			 errmsg("unknown verb \"%s\" in saga.inbox", name)));
}

/*
 * Terminate by force a saga that cannot be taken in (its log is damaged, its
 * definition does not compile): its row and one record say so.
 */
static void
end_unreadable(Known *known, const SagaInboxRow *inbox)
{
	SagaLogEntry *entry = SAGA_APPEND(saga_turn.entries, saga_turn.nentries,
									  saga_turn.maxentries);
	SagaInstanceChange *change = SAGA_APPEND(saga_turn.changes, saga_turn.nchanges,
											 saga_turn.maxchanges);
	SagaStuckChange *stuck = SAGA_APPEND(saga_turn.stuck, saga_turn.nstuck,
										 saga_turn.maxstuck);
	TimestampTz now = saga_now();

	memset(entry, 0, sizeof(*entry));
	entry->saga_id = known->id;
	entry->at = now;
	entry->record.seq = saga_log_last_seq(&known->id) + 1;
	entry->record.kind = SAGA_RECORD_ENDED;
	entry->record.state = SAGA_TERMINATED;
	entry->record.cause = SAGA_CAUSE_OPERATOR;
	entry->record.node = SAGA_NO_NODE;
	entry->payload.actor = MemoryContextStrdup(saga_turn_context, inbox->actor);
	entry->payload.note = inbox->note ? MemoryContextStrdup(saga_turn_context, inbox->note) : NULL;
	memset(change, 0, sizeof(*change));
	change->id = known->id;
	change->state = SAGA_TERMINATED;
	change->cause = SAGA_CAUSE_OPERATOR;
	change->ended_at = now;
	change->holds = true;
	memset(stuck, 0, sizeof(*stuck));
	stuck->saga_id = known->id;
	saga_forget(known);
}

static void
take_verb(Known *known, const SagaInboxRow *row)
{
	SagaVerb	verb = verb_of(row->verb);
	SagaRun    *run;
	SagaEvent	event;
	SagaPayload *payload;

	if (known->run == NULL && known->failures > 0 && row->force &&
		verb == SAGA_VERB_TERMINATE)
	{
		end_unreadable(known, row);
		consumed(row->id, true);
		return;
	}
	run = known->run ? known->run : saga_take_in(known, SAGA_ADMIT_COMMAND, NULL);
	if (run == NULL)
	{
		consumed(row->id, true);
		return;
	}
	memset(&event, 0, sizeof(event));
	event.kind = SAGA_EVENT_VERB;
	event.verb = verb;
	event.force = row->force;
	event.value = row->has_value ? row->value : SAGA_NEVER;
	event.node = row->step == NULL ? SAGA_NO_NODE :
		row->step[0] == '#' ? atoi(row->step + 1) :	/* ours: no name begins so */
		saga_step_of_name(run, row->step);
	payload = payload_of(row);
	if (row->step && row->step[0] == '#')
		saga_call_woken(run, event.node);
	saga_run_feed(run, &event, payload);
	consumed(row->id, true);
	if (run->state->seq == 0)
	{
		/* nothing came of it: the saga waits for its start as before */
		int32		priority = known->priority;

		saga_turn_drop(&known->id, run);
		saga_run_free(run, false);
		saga_arrive(&known->id, 0, priority);
	}
}

/* -------------------------------------------------------------- signals */

/* Its own name, or the one that stands for all. */
int
saga_signal_number(const SagaDefinition *def, const char *signal)
{
	int			any = -1;

	for (int i = 0; i < def->graph->nsignals; i++)
	{
		if (strcmp(def->graph->signals[i], signal) == 0)
			return i;
		if (strcmp(def->graph->signals[i], SAGA_ANY_SIGNAL) == 0)
			any = i;
	}
	return any;
}

/* Who waits for any signal is told which one came. */
static Jsonb *
name_and_payload(const char *signal, const Jsonb *payload)
{
	JsonbParseState *state = NULL;
	JsonbValue	key;
	JsonbValue	value;
	Jsonb	   *object;
	MemoryContext old = MemoryContextSwitchTo(saga_turn_context);

	pushJsonbValue(&state, WJB_BEGIN_OBJECT, NULL);
	key.type = jbvString;
	key.val.string.val = "signal";
	key.val.string.len = 6;
	pushJsonbValue(&state, WJB_KEY, &key);
	value.type = jbvString;
	value.val.string.val = pstrdup(signal);
	value.val.string.len = (int) strlen(signal);
	pushJsonbValue(&state, WJB_VALUE, &value);
	key.val.string.val = "payload";
	key.val.string.len = 7;
	pushJsonbValue(&state, WJB_KEY, &key);
	if (payload == NULL)
		value.type = jbvNull;
	else if (!JB_ROOT_IS_SCALAR(payload) ||
			 !JsonbExtractScalar((JsonbContainer *) &payload->root, &value))
	{
		value.type = jbvBinary;
		value.val.binary.data = (JsonbContainer *) &payload->root;
		value.val.binary.len = VARSIZE(payload) - VARHDRSZ;
	}
	pushJsonbValue(&state, WJB_VALUE, &value);
	object = JsonbValueToJsonb(pushJsonbValue(&state, WJB_END_OBJECT, NULL));
	MemoryContextSwitchTo(old);
	return object;
}

/* The signal's number, its payload as it is kept; -1 if nobody waits for it. */
static int
signal_of(const SagaRun *run, const SagaInboxRow *row, SagaPayload **payload)
{
	int			number = saga_signal_number(run->def, row->step);

	*payload = payload_of(row);
	if (number >= 0 && strcmp(run->def->graph->signals[number], SAGA_ANY_SIGNAL) == 0)
		(*payload)->result = name_and_payload(row->step, row->result);
	return number;
}

/*
 * A signal for a saga that has not begun stays in the inbox, and is read again
 * when it begins; so does one for a saga whose end is decided and not written:
 * then it is written with that.
 */
static void
take_signal(Known *known, const SagaInboxRow *row)
{
	bool		pending = false;
	SagaRun    *run = known->run ? known->run :
		saga_take_in(known, SAGA_ADMIT_LETTER, &pending);
	SagaEvent	event;
	SagaPayload *payload;

	if (pending || (run && SAGA_STATE_ENDED(run->state->state)))
		return;
	if (run && !(row->note && saga_signal_seen(run, row->note)))
	{
		memset(&event, 0, sizeof(event));
		event.kind = SAGA_EVENT_SIGNAL;
		event.node = SAGA_NO_NODE;
		event.value = signal_of(run, row, &payload);
		if (event.value >= 0)
			saga_run_feed(run, &event, payload);
	}
	consumed(row->id, true);
}

SagaLogEntry *
saga_inbox_late_signals(SagaRun *run, int *n)
{
	int			nrows;
	SagaRingEntry *rows = saga_log_list_inbox_of(&run->row.id, true, &nrows);
	SagaLogEntry *entries = MemoryContextAllocZero(saga_turn_context,
												   sizeof(SagaLogEntry) * Max(nrows, 1));

	*n = 0;
	for (int i = 0; i < nrows; i++)
	{
		SagaInboxRow row;
		SagaLogEntry *entry = &entries[*n];
		SagaPayload *payload;
		int			number;

		if (is_taken(rows[i].inbox_id) || !saga_log_read_inbox(rows[i].inbox_id, &row))
			continue;
		consumed(row.id, true);
		number = signal_of(run, &row, &payload);
		if (number < 0 || (row.note && saga_signal_seen(run, row.note)))
			continue;
		entry->saga_id = run->row.id;
		entry->at = saga_now();
		entry->record.kind = SAGA_RECORD_SIGNAL;
		entry->record.node = SAGA_NO_NODE;
		entry->record.value = number;
		entry->payload = *payload;
		saga_complete_payload(run, &entry->record, &entry->payload);
		saga_remember_record(run, &entry->record, &entry->payload);
		(*n)++;
	}
	return entries;
}

/* -------------------------------------------------------------- answers */

/* The local barrier of a call that was taken on: no longer needed. */
static void
forget_outcome(SagaRun *run, int step, SagaOp op)
{
	int			node = saga_node_of(run, step);
	const SagaCall *call = op == SAGA_OP_UNDO ? run->def->compensation[node] :
		run->def->action[node];
	SagaOutcomeKey *key;

	if (call == NULL || call->server || call->kind != SAGA_CALL_SQL)
		return;
	key = SAGA_APPEND(saga_turn.outcomes, saga_turn.noutcomes, saga_turn.maxoutcomes);
	key->saga_id = run->row.id;
	key->node = step;
	key->op = saga_outcome_op(op);
}

/* What a later answer says must be of the type that the step returns. */
static void
check_returns(SagaRun *run, int step, SagaPayload *payload)
{
	const SagaCall *call = run->def->action[saga_node_of(run, step)];
	char	   *problem = NULL;
	MemoryContext old;

	if (payload->result == NULL || call == NULL || call->returns_type == NULL)
		return;
	old = MemoryContextSwitchTo(saga_turn_context);
	payload->result = saga_result_from_text(call,
											JsonbToCString(NULL, &payload->result->root,
														   VARSIZE(payload->result)),
											&problem);
	if (problem)
		payload->message = psprintf("the result is not usable: %s", problem);
	MemoryContextSwitchTo(old);
}

/* complete, fail, heartbeat: of a step whose call was taken on. */
static void
take_answer(Known *known, const SagaInboxRow *row, bool alive)
{
	SagaRun    *run = known->run ? known->run :
		saga_take_in(known, SAGA_ADMIT_COMMAND, NULL);
	SagaEvent	event;
	SagaPayload *payload;

	consumed(row->id, !alive);
	if (run == NULL || row->step == NULL)
		return;
	memset(&event, 0, sizeof(event));
	event.kind = alive ? SAGA_EVENT_HEARTBEAT : SAGA_EVENT_COMPLETED;
	event.op = row->operation ? saga_op_from_name(row->operation) : SAGA_OP_ACTION;
	event.node = saga_step_of_name(run, row->step);
	event.answer = row->kind ? saga_answer_from_name(row->kind) : SAGA_ANSWER_DONE;
	if (event.node < 0)
		return;
	payload = payload_of(row);
	payload->note = NULL;
	if (!alive && event.answer != SAGA_ANSWER_DONE)
	{
		payload->message = keep(row->note);
		strlcpy(payload->sqlstate, event.answer == SAGA_ANSWER_DECLINED ? "SGB01" :
				event.answer == SAGA_ANSWER_TRANSIENT ? "SGB02" : "",
				sizeof(payload->sqlstate));
	}
	else if (!alive && event.op == SAGA_OP_ACTION)
		check_returns(run, event.node, payload);
	if (saga_run_feed(run, &event, payload) && !alive)
		forget_outcome(run, event.node, event.op);
}

/* ---------------------------------------------------------- sub-sagas */

/* A child has ended: its parent looks what has become of it. */
static void
take_child_ended(Known *known, const SagaInboxRow *row)
{
	SagaRun    *run = known->run ? known->run :
		saga_take_in(known, SAGA_ADMIT_LETTER, NULL);

	consumed(row->id, true);
	if (run == NULL || row->step == NULL)
		return;
	if (strcmp(row->verb, SAGA_UNDO_REFUSED) == 0)
		saga_child_undo_refused(run, row->step, row->note ? row->note : "");
	else
		saga_child_ended(run, row->step);
}

/* A parent wants this saga undone, also when it has ended. */
static void
take_undo_child(Known *known, const SagaInboxRow *row)
{
	SagaRun    *run = known->run ? known->run :
		saga_take_in(known, SAGA_ADMIT_ENDED, NULL);

	consumed(row->id, true);
	if (run)
		saga_undo_child(run);
}

/* ------------------------------------------------------------ changes */

/* A new version, or new options: what it goes by, not what it does. */
static void
take_amend(Known *known, const SagaInboxRow *row)
{
	SagaRun    *run = known->run ? known->run :
		saga_take_in(known, SAGA_ADMIT_LETTER, NULL);

	if (run && strcmp(row->verb, "set_step_options") == 0)
		saga_amend_set_options(run, row->step, row->result, row->actor, row->note);
	else if (run && !saga_amend_migrate(run, row->value, row->actor, row->note))
		return;					/* it stays until the next safety poll */
	consumed(row->id, true);
}

/* ------------------------------------------------------------ one row */

void
saga_inbox_take(int64 inbox_id)
{
	SagaInboxRow row;
	Known	   *known;

	/* a ring and a scan may both have told of it */
	if (is_taken(inbox_id) || !saga_log_read_inbox(inbox_id, &row))
		return;
	known = saga_known(&row.saga_id, true);
	if (known->run && known->run->reload)
	{
		defer(&row);
		return;
	}
	if (strcmp(row.verb, "migrate") == 0 || strcmp(row.verb, "set_step_options") == 0)
		take_amend(known, &row);
	else if (strcmp(row.verb, "signal") == 0)
		take_signal(known, &row);
	else if (strcmp(row.verb, "complete") == 0 || strcmp(row.verb, "fail") == 0)
		take_answer(known, &row, false);
	else if (strcmp(row.verb, "heartbeat") == 0)
		take_answer(known, &row, true);
	else if (strcmp(row.verb, SAGA_CHILD_ENDED) == 0 ||
			 strcmp(row.verb, SAGA_UNDO_REFUSED) == 0)
		take_child_ended(known, &row);
	else if (strcmp(row.verb, SAGA_UNDO_CHILD) == 0)
		take_undo_child(known, &row);
	else
		take_verb(known, &row);
}

void
saga_inbox_reread(const pg_uuid_t *id)
{
	int			n;
	SagaRingEntry *rows = saga_log_list_inbox_of(id, false, &n);

	for (int i = 0; i < n; i++)
		saga_arrive(&rows[i].saga_id, rows[i].inbox_id, 0);
}
