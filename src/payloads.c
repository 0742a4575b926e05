/*
 * payloads.c
 *		What a saga in memory holds beside the machine's state: results and
 *		elements by step, letters that signals brought, names of runs, and
 *		what its records mean for them.
 *
 * Called by turn.c, runs.c and calls.c for every record, decided or read back
 * from the log.  All of it lives in the run's memory context.  Decides
 * nothing, writes no table.
 */
#include "postgres.h"

#include "common/hashfn.h"
#include "utils/builtins.h"
#include "utils/hsearch.h"
#include "utils/memutils.h"

#include "compat.h"
#include "coordinator.h"
#include "guc.h"

/* Of a signal, by the number of its record, until the step that takes it. */
typedef struct Letter
{
	int32		seq;
	Jsonb	   *payload;
} Letter;

/* A signal's own id, as a hash that does not collide by accident. */
typedef struct SignalId
{
	uint64		hash[2];
} SignalId;

struct SagaLetters
{
	int			n,
				max;
	Letter	   *letters;		/* in order of seq */
	HTAB	   *ids;			/* SignalId; NULL: none had one */
};

/* The state has more steps than a moment ago: so have these arrays. */
void
saga_run_grow(SagaRun *run)
{
	int			old = run->maxsteps;
	int			n = run->state->nsteps;

	if (n <= old)
		return;
	n = Max(n, Min(old * 2, old + 4096));
#define GROW(array) \
	(array) = (array) ? repalloc((array), sizeof(*(array)) * n) : \
		MemoryContextAlloc(run->context, sizeof(*(array)) * n); \
	memset((array) + old, 0, sizeof(*(array)) * (n - old))
	GROW(run->results);
	GROW(run->items);
	GROW(run->names);
#undef GROW
	if (run->skip_result)
	{
		run->skip_result = repalloc(run->skip_result, sizeof(Jsonb *) * n);
		memset(run->skip_result + old, 0, sizeof(Jsonb *) * (n - old));
	}
	run->maxsteps = n;
}

/* Name of a step's run, or of a pseudo-node; lives as long as the run. */
const char *
saga_step_name(SagaRun *run, int step)
{
	char		buf[SAGA_STEP_NAME_SIZE];
	const char *name;

	if (step == SAGA_NODE_END)
		return SAGA_END_NAME;
	if (step == SAGA_NODE_ON_STUCK)
		return SAGA_ON_STUCK_NAME;
	if (step < 0 || step >= run->state->nsteps)
		return NULL;
	saga_run_grow(run);
	if (run->names[step])
		return run->names[step];
	name = saga_machine_step_name(run->state, step, buf, sizeof(buf));
	if (name == buf)
		name = MemoryContextStrdup(run->context, buf);
	return run->names[step] = name;
}

int
saga_step_of_name(const SagaRun *run, const char *name)
{
	if (strcmp(name, SAGA_END_NAME) == 0)
		return SAGA_NODE_END;
	if (strcmp(name, SAGA_ON_STUCK_NAME) == 0)
		return SAGA_NODE_ON_STUCK;
	return saga_machine_find_step(run->state, name);
}

/* The node of the definition that a step is a run of, or the pseudo-node. */
int
saga_node_of(const SagaRun *run, int step)
{
	return step < 0 ? step : run->state->steps[step].node;
}

Jsonb *
saga_keep_result(SagaRun *run, const Jsonb *result)
{
	Jsonb	   *copy;

	if (result == NULL)
		return NULL;
	copy = MemoryContextAlloc(run->context, VARSIZE(result));
	memcpy(copy, result, VARSIZE(result));
	return copy;
}

static char *
keep_text(SagaRun *run, const char *s)
{
	return s ? MemoryContextStrdup(run->context, s) : NULL;
}

/* ------------------------------------------------------------- signals */

static SignalId
hash_of(const char *signal_id)
{
	SignalId	id;
	int			n = (int) strlen(signal_id);

	id.hash[0] = hash_bytes_extended((const unsigned char *) signal_id, n, 0);
	id.hash[1] = hash_bytes_extended((const unsigned char *) signal_id, n, 1);
	return id;
}

static struct SagaLetters *
letters_of(SagaRun *run)
{
	if (run->letters == NULL)
		run->letters = MemoryContextAllocZero(run->context, sizeof(struct SagaLetters));
	return run->letters;
}

/* Has a signal with this id been recorded? */
bool
saga_signal_seen(SagaRun *run, const char *signal_id)
{
	SignalId	id = hash_of(signal_id);

	return run->letters && run->letters->ids &&
		hash_search(run->letters->ids, &id, HASH_FIND, NULL) != NULL;
}

static void
remember_signal(SagaRun *run, const SagaRecord *r, const SagaPayload *p)
{
	struct SagaLetters *l = letters_of(run);

	if (l->n == l->max)
	{
		l->max = Max(4, l->max * 2);
		l->letters = l->letters ? repalloc(l->letters, sizeof(Letter) * l->max) :
			MemoryContextAlloc(run->context, sizeof(Letter) * l->max);
	}
	l->letters[l->n].seq = r->seq;
	l->letters[l->n++].payload = saga_keep_result(run, p->result);
	if (p->note)
	{
		SignalId	id = hash_of(p->note);

		if (l->ids == NULL)
		{
			HASHCTL		ctl;

			memset(&ctl, 0, sizeof(ctl));
			ctl.keysize = ctl.entrysize = sizeof(SignalId);
			ctl.hcxt = run->context;
			l->ids = hash_create("saga signal ids", 16, &ctl,
								 HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
		}
		(void) hash_search(l->ids, &id, HASH_ENTER, NULL);
	}
}

/* The payload of the signal that record 'seq' brought. */
static Jsonb *
letter(const SagaRun *run, int64 seq)
{
	int			low = 0;
	int			high = run->letters ? run->letters->n : 0;

	while (low < high)
	{
		int			middle = low + (high - low) / 2;

		if (run->letters->letters[middle].seq < seq)
			low = middle + 1;
		else
			high = middle;
	}
	return run->letters && low < run->letters->n &&
		run->letters->letters[low].seq == seq ? run->letters->letters[low].payload : NULL;
}

/* ------------------------------------------------------- results of steps */

static void
push_element(JsonbParseState **state, Jsonb *element)
{
	JsonbValue	value;

	if (element == NULL)
		value.type = jbvNull;
	else if (!JB_ROOT_IS_SCALAR(element) || !JsonbExtractScalar(&element->root, &value))
	{
		value.type = jbvBinary;
		value.val.binary.data = &element->root;
		value.val.binary.len = VARSIZE(element) - VARHDRSZ;
	}
	pushJsonbValue(state, WJB_ELEM, &value);
}

/*
 * The result of an EACH: those of its elements in order, null where one has
 * none.  Each is also there by its own name, so what is too large together is
 * not an error: it is left out, and the record says so.
 */
static void
collect_elements(SagaRun *run, int step, SagaPayload *payload)
{
	SagaStep   *each = &run->state->steps[step];
	int			n = each->value;
	int32	   *by_number = palloc(sizeof(int32) * Max(n, 1));
	Size		size = 0;
	JsonbParseState *state = NULL;

	for (int i = 0; i < n; i++)
		by_number[i] = -1;
	for (int r = each->first_run; r >= 0; r = run->state->runs[r].previous)
	{
		const SagaScopeRun *scope_run = &run->state->runs[r];

		if (scope_run->number < n)
			by_number[scope_run->number] = scope_run->steps[0];
	}
	for (int i = 0; i < n; i++)
		if (by_number[i] >= 0 && run->results[by_number[i]])
			size += VARSIZE(run->results[by_number[i]]);
	if (size > (Size) saga_max_payload)
	{
		payload->message = "the results of the elements together are larger than saga.max_payload, see those of the elements";
		pfree(by_number);
		return;
	}
	pushJsonbValue(&state, WJB_BEGIN_ARRAY, NULL);
	for (int i = 0; i < n; i++)
		push_element(&state, by_number[i] < 0 ? NULL : run->results[by_number[i]]);
	payload->result = JsonbValueToJsonb(pushJsonbValue(&state, WJB_END_ARRAY, NULL));
	pfree(by_number);
}

/*
 * What is written beside a record that was just decided, where that is not
 * what came with the event.
 */
void
saga_complete_payload(SagaRun *run, const SagaRecord *r, SagaPayload *p)
{
	const SagaNode *node;

	if (r->node < 0)
	{
		if (r->kind == SAGA_RECORD_SIGNAL)
			p->message = run->def->graph->signals[r->value];
		return;
	}
	node = &run->def->graph->nodes[run->state->steps[r->node].node];
	switch (r->kind)
	{
		case SAGA_RECORD_SKIPPED:
			if (p->result == NULL && run->skip_result)
				p->result = run->skip_result[r->node];
			break;
		case SAGA_RECORD_DONE:
			if (r->op == SAGA_OP_UNDO)
				break;
			if (node->kind == SAGA_NODE_EACH)
				collect_elements(run, r->node, p);
			else if (node->kind == SAGA_NODE_SIGNAL)
				p->result = letter(run, r->value);
			else if (node->kind != SAGA_NODE_STEP)
				p->result = NULL;	/* of the event that led to it */
			break;
		case SAGA_RECORD_AWAITING:
			p->message = run->def->graph->signals[node->signal];
			break;
		default:
			break;
	}
}

/* What a record means beyond the machine's state; also during replay. */
void
saga_remember_record(SagaRun *run, const SagaRecord *r, const SagaPayload *p)
{
	saga_run_grow(run);
	switch (r->kind)
	{
		case SAGA_RECORD_DONE:
		case SAGA_RECORD_SKIPPED:
			if (r->node >= 0 && r->op != SAGA_OP_UNDO)
				run->results[r->node] = saga_keep_result(run, p->result);
			break;
		case SAGA_RECORD_EXPANDED:
			run->items[r->node] = saga_keep_result(run, p->result);
			break;
		case SAGA_RECORD_SIGNAL:
			remember_signal(run, r, p);
			break;
		case SAGA_RECORD_INTENT:
			/* the operator's result of a skip that waits for its claim */
			if (r->node >= 0 && r->op == SAGA_OP_CLAIM && p->result)
			{
				if (run->skip_result == NULL)
					run->skip_result = MemoryContextAllocZero(run->context,
															  sizeof(Jsonb *) * run->maxsteps);
				run->skip_result[r->node] = saga_keep_result(run, p->result);
			}
			break;
		case SAGA_RECORD_FAILED:
		case SAGA_RECORD_HOOK:
			strlcpy(run->sqlstate, p->sqlstate, sizeof(run->sqlstate));
			run->error = keep_text(run, p->message);
			break;
		case SAGA_RECORD_UNDO:
			run->failed_step = keep_text(run, saga_step_name(run, r->node));
			if (r->cause == SAGA_CAUSE_DECLINED)
			{
				strlcpy(run->failed_sqlstate, run->sqlstate, sizeof(run->failed_sqlstate));
				run->failed_error = run->error;
			}
			else
				run->failed_error = keep_text(run, p->note);
			break;
		default:
			break;
	}
}
