/*
 * machine_sim.c
 *		Random sagas against a hostile world: the state machine, its fold and
 *		its recovery, checked by what the world has seen.
 *
 *		machine_sim [SEED [FIRST [COUNT]]] [-v]
 *
 * Built by tools/sim without the server; nothing else uses it.  It must know
 * the machine only by machine.h: the promises are judged by the effects at the
 * participants, not by the machine's opinion of them.
 *
 * Every saga has its own random sequence, made from SEED and its number, so
 * that "machine_sim SEED NUMBER 1 -v" repeats one alone and prints all that
 * happened; a failure does so by itself.
 *
 * The world: a coordinator with a log whose tail can be lost; local calls,
 * whose effect and outcome row share a commit; participants with a barrier, to
 * which calls are sent once their records are flushed, and from which answers
 * are lost, late, doubled or never given; crashes, operators, clocks that jump
 * forward.  After a while the world turns honest, and every saga must end, or
 * wait for an operator and say why.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "machine.h"

#define MAX_NODES	32
#define MAX_DEPS	4
#define MAX_EVENTS	20000		/* a saga that needs more does not end */
#define CALL_TIMEOUT (30 * SAGA_SECOND)

/* ------------------------------------------------------- randomness */

static uint64 rng;

static uint64
next_random(void)
{
	uint64		z = (rng += UINT64_C(0x9e3779b97f4a7c15));

	z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
	z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
	return z ^ (z >> 31);
}

/* 0 .. n - 1 */
static int
rnd(int n)
{
	return (int) (((next_random() >> 32) * (uint64) n) >> 32);
}

static bool
chance(int per_mille)
{
	return rnd(1000) < per_mille;
}

static double
rnd_share(void)
{
	return (double) (next_random() >> 11) / 9007199254740992.0;
}

/* ------------------------------------------------------- memory */

typedef struct Pool
{
	char	   *start;
	size_t		used;
	size_t		size;
} Pool;

static void *
pool_alloc(SagaArena *arena, size_t size)
{
	Pool	   *pool = arena->context;
	void	   *p;

	size = (size + 15) & ~(size_t) 15;
	if (pool->used + size > pool->size)
	{
		fprintf(stderr, "machine_sim: pool of %zu bytes is full\n",
				pool->size);
		exit(2);
	}
	p = pool->start + pool->used;
	pool->used += size;
	memset(p, 0, size);
	return p;
}

static SagaArena
pool_create(Pool *pool, size_t size)
{
	SagaArena	arena = {pool_alloc, pool};

	pool->start = malloc(size);
	pool->size = size;
	pool->used = 0;
	if (pool->start == NULL)
		exit(2);
	return arena;
}

static Pool graph_pool,
			live_pool,
			fold_pool,
			out_pool;
static SagaArena graph_arena,
			live_arena,
			fold_arena,
			out_arena;

/* ------------------------------------------------------- coverage */

enum
{
	COV_CRASH, COV_TAIL_LOST, COV_TORN_DECISION, COV_CRASH_IN_RECOVERY,
	COV_OUTCOME_FED, COV_OUTCOME_FIRST, COV_CLEAN_RELOAD, COV_TIMEOUT,
	COV_LATE_EFFECT, COV_DUPLICATE, COV_STALE_ANSWER, COV_LOST_CALL,
	COV_UNDO_RUN, COV_UNDO_NOTHING, COV_CLAIM_DONE, COV_CLAIM_REFUSED,
	COV_CLAIM_FAILED, COV_PIVOT_CLAIMED, COV_HELD, COV_CLOCK_JUMP,
	COV_CANCEL_CALL, COV_FREE_ANSWER, COV_RETRY_AFTER, COV_FORCED,
	COV_ON_STUCK, COV_OPERATOR_NEEDED, COV_BIG_GRAPH, COV_EMPTY_GRAPH,
	COV_FUZZ_ACCEPTED, COV_FUZZ_REFUSED, COV_COUNT
};

static const char *const cov_names[COV_COUNT] = {
	"crash", "log tail lost", "decision torn by a crash",
	"crash in recovery", "outcome fed at recovery", "outcome before start",
	"evicted and reloaded", "time-out", "effect after its time-out",
	"duplicate execution", "stale answer", "worker lost",
	"conditional undo ran", "conditional undo found nothing",
	"claim: done", "claim: refused", "claim: failed", "pivot claimed",
	"failure held for the pivot", "clock jump", "call cancelled",
	"free answer", "retry-after", "forced verb", "on_stuck called",
	"operator needed at the end", "big graph", "empty graph",
	"fuzz record accepted", "fuzz record refused",
};

static int64 cov[COV_COUNT];
static int64 cov_record[SAGA_RECORD_ENDED + 1];
static int64 cov_state[SAGA_TERMINATED + 1];
static int64 cov_cause[SAGA_CAUSE_OPERATOR + 1];
static int64 cov_reason[SAGA_STUCK_HOOK_FAILS + 1];
static int64 cov_answer[SAGA_OP_CLAIM + 1][SAGA_ANSWER_REFUSED + 1];
static int64 cov_verb[SAGA_VERB_SKIP_STEP + 1][2];
static int64 ndecisions;
static int64 nrecords_total;

/* ------------------------------------------------------- the world */

/* A key at a participant's barrier (or in the table of local outcomes). */
typedef enum Key
{
	KEY_FREE,
	KEY_DONE,
	KEY_REFUSED,
} Key;

/* One operation of one node as the world knows it; [0] action, [1] undo. */
typedef struct Place
{
	uint8		key;
	bool		outcome_row;	/* local: committed, record not yet flushed */
	bool		forced;			/* an operator took the risk */
	bool		broken;			/* misconfigured until the world is honest */
	int			effects;
	int			intent;			/* 1 + index of the record, 0 = none */
	int			fail;			/* per mille, until honest */
} Place;

typedef struct Call
{
	int32		node;
	uint8		op;
	uint8		target;			/* the place it is about: 0 or 1 */
	bool		conditional;
	bool		local;
	bool		open;			/* the coordinator waits for it */
	bool		timed_out;
	int			epoch;
	int			need;			/* records that must be flushed first */
} Call;

typedef enum MessageKind
{
	MSG_EXECUTE,				/* reaches the participant or executor */
	MSG_SILENT,					/* the same, but its answer is lost */
	MSG_ANSWER,
	MSG_LOST,
} MessageKind;

typedef struct Message
{
	SagaTime	at;
	int			call;
	uint8		kind;
	uint8		answer;
} Message;

#define MAX_MESSAGES 4096
#define MAX_CALLS	16384
#define MAX_LOG		65536

static SagaNode nodes[MAX_NODES];
static int32 deps[MAX_NODES][MAX_DEPS];
static bool waived[MAX_NODES];
static SagaGraph graph;

static SagaState *live;			/* NULL while the coordinator is down */
static SagaState *fold;			/* the log, by saga_machine_apply() alone */
static SagaDecision out;

static SagaRecord records[MAX_LOG];
static bool decision_end[MAX_LOG];	/* the transaction ends after it */
static int	nlog;
static int	nflushed;
static int	nheavy;				/* unflushed records local calls wait for */

static Call calls[MAX_CALLS];
static int	ncalls;
static int	outbox[MAX_CALLS];
static int	noutbox;
static Message messages[MAX_MESSAGES];
static int	nmessages;

static Place place[MAX_NODES][2];
static bool declines[MAX_NODES];
static bool hook_row;
static int	hook_effects;
static int	hook_fail;
static int	stuck_calls;

static SagaTime now;
static SagaTime deadline;
static int	epoch;
static bool honest;
static bool verbose;
static int	fault_level;		/* of participants and network, 0 to 3 */
static int	chaos;				/* of everything else, 1 to 8 */
static uint64 seed;
static int64 number;
static jmp_buf failed;

/* ------------------------------------------------------- trace */

static void
trace(const char *format,...)
{
	va_list		args;

	if (!verbose)
		return;
	printf("%12.3f  ", (double) (now % (SAGA_SECOND * 100000000)) / 1e6);
	va_start(args, format);
	vprintf(format, args);
	va_end(args);
	printf("\n");
}

static void
fail(const char *format,...)
{
	va_list		args;

	printf("\nFAILED  seed %llu, saga %lld: ", (unsigned long long) seed,
		   (long long) number);
	va_start(args, format);
	vprintf(format, args);
	va_end(args);
	printf("\n");
	longjmp(failed, 1);
}

#define CHECK(condition, ...) \
	do { if (!(condition)) fail(__VA_ARGS__); } while (0)

static void
trace_record(const SagaRecord *r)
{
	trace("    #%d %s node %d %s answer=%s maybe=%d attempt=%d due=%.3f %s %s",
		  r->seq, saga_record_name(r->kind), r->node, saga_op_name(r->op),
		  saga_answer_name(r->answer), r->maybe, r->attempt,
		  (double) (r->due % (SAGA_SECOND * 100000000)) / 1e6,
		  r->cause ? saga_cause_name(r->cause) : "",
		  r->kind == SAGA_RECORD_ENDED ? saga_state_name(r->state) :
		  r->reason ? saga_stuck_reason_name(r->reason) : "");
}

/* ------------------------------------------------------- checks */

/* The one ephemeral status is that of a local call. */
static int
lasting_status(const SagaState *state, int i)
{
	const SagaStep *s = &state->steps[i];

	if (s->status == SAGA_STEP_CALLING && nodes[i].action_local)
		return SAGA_STEP_IDLE;
	if (s->status == SAGA_STEP_UNDO_CALLING && nodes[i].compensation_local)
		return s->happened ? SAGA_STEP_DONE : SAGA_STEP_FAILED;
	return s->status;
}

#define SAME(field) CHECK(a->field == b->field, \
	"the fold differs in %s: %lld, fold has %lld (node %d)", #field, \
	(long long) a->field, (long long) b->field, i)

static void
compare_step(const SagaStep *a, const SagaStep *b, int i)
{
	SAME(maybe);
	SAME(undo_maybe);
	SAME(sticky);
	SAME(happened);
	SAME(continued);
	SAME(settled);
	SAME(refused);
	SAME(claiming);
	SAME(claim_skip);
	SAME(claim_failed);
	SAME(skip_tried);
	SAME(reason);
	SAME(last_kind);
	SAME(broken);
	SAME(attempts);
	SAME(claim_tries);
	SAME(intent_at);
	SAME(done_at);
	SAME(unmet);
	SAME(due);
	SAME(claim_due);
}

static void
compare_states(const SagaState *a, const SagaState *b)
{
	int			i = -1;

	SAME(state);
	SAME(direction);
	SAME(cause);
	SAME(stuck_reason);
	SAME(paused);
	SAME(terminating);
	SAME(deadline_hit);
	SAME(deadline_stuck);
	SAME(pivot_intent);
	SAME(failed_node);
	SAME(stuck_node);
	SAME(seq);
	SAME(open);
	SAME(nheld);
	SAME(nwaiting);
	SAME(nbusy);
	SAME(nstuck);
	SAME(deadline);
	SAME(stuck_hook_due);
	SAME(stuck_hooks);
	SAME(ready.n);
	SAME(hook.status);
	compare_step(&a->hook, &b->hook, -1);
	for (i = 0; i < graph.nnodes; i++)
	{
		CHECK(lasting_status(a, i) == b->steps[i].status,
			  "the fold differs in the status of node %d: %d, fold has %d",
			  i, lasting_status(a, i), b->steps[i].status);
		compare_step(&a->steps[i], &b->steps[i], i);
	}
	for (i = 0; i < a->ready.n; i++)
		SAME(ready.items[i]);
}

/* The counts of a state, found again from its steps. */
static void
check_counts(const SagaState *state)
{
	int32		open = 0,
				held = 0,
				nstuck = state->hook.reason != SAGA_STUCK_NONE;

	for (int i = 0; i < state->nsteps; i++)
	{
		const SagaStep *s = &state->steps[i];

		if (s->replaced)
			continue;
		open += s->status <= SAGA_STEP_STUCK ||
			(s->status >= SAGA_STEP_EVALUATING &&
			 s->status <= SAGA_STEP_SCOPED);
		held += s->status == SAGA_STEP_FAILED && !s->continued;
		nstuck += s->reason != SAGA_STUCK_NONE;
	}
	CHECK(open == state->open, "open is %d, not %d", state->open, open);
	CHECK(nstuck == state->nstuck, "nstuck is %d, not %d",
		  state->nstuck, nstuck);
	CHECK(state->direction == SAGA_UNDO || held == state->nheld,
		  "nheld is %d, not %d", state->nheld, held);
	CHECK(state->ready.n <= state->nsteps,
		  "%d are ready", state->ready.n);
}

/* What is out according to the machine is out according to the world. */
static void
check_in_flight(void)
{
	int			nopen = 0;
	int			flags = live->hook.in_flight + live->stuck_hook_out;

	for (int i = 0; i < ncalls; i++)
		nopen += calls[i].open && calls[i].epoch == epoch;
	for (int i = 0; i < graph.nnodes; i++)
		flags += live->steps[i].in_flight + live->steps[i].claim_out;
	CHECK(flags == live->in_flight && nopen == flags,
		  "%d calls are out, the machine says %d (counts %d)", nopen,
		  flags, live->in_flight);
}

/* Is something left of what follows the node? */
static bool
followers_left(int i, bool *seen)
{
	for (int k = 0; k < nodes[i].nnext; k++)
	{
		int			next = nodes[i].next[k];
		const SagaStep *s = &live->steps[next];

		if (seen[next])
			continue;
		seen[next] = true;
		if (s->in_flight || s->claiming ||
			(nodes[next].has_compensation &&
			 (s->happened || s->maybe) &&
			 s->status != SAGA_STEP_UNDONE &&
			 s->status != SAGA_STEP_SKIPPED))
			return true;
		if (followers_left(next, seen))
			return true;
	}
	return false;
}

static bool
blocked_by_graph(int i)
{
	bool		seen[MAX_NODES] = {false};

	return followers_left(i, seen);
}

static int64
newness(int i)
{
	const SagaStep *s = &live->steps[i];

	return s->happened || s->continued ? s->done_at :
		(INT64_C(1) << 32) + s->intent_at;
}

/* The compensation of a node is about to be called. */
static void
check_undo_order(int node)
{
	CHECK(live->direction == SAGA_UNDO, "undo of %d going forward", node);
	if (graph.undo_order == SAGA_UNDO_PARALLEL)
		return;
	CHECK(!blocked_by_graph(node),
		  "undo of node %d before that of one after it", node);
	if (graph.undo_order != SAGA_UNDO_REVERSE)
		return;
	for (int i = 0; i < graph.nnodes; i++)
	{
		const SagaStep *s = &live->steps[i];

		if (i == node)
			continue;
		CHECK(!(s->status >= SAGA_STEP_UNDO_CALLING &&
				s->status <= SAGA_STEP_UNDO_STUCK),
			  "undo of node %d beside that of %d", node, i);
		CHECK(!(s->in_flight && s->status <= SAGA_STEP_STUCK),
			  "undo of node %d while %d is out", node, i);
		if ((s->status == SAGA_STEP_DONE ||
			 (s->status == SAGA_STEP_FAILED && s->maybe)) &&
			nodes[i].has_compensation && newness(i) > newness(node))
			CHECK(blocked_by_graph(i), "undo of node %d before the newer %d",
				  node, i);
	}
}

/* ------------------------------------------------------- sending */

static void
post(SagaTime at, MessageKind kind, int call, SagaAnswerKind answer)
{
	Message    *m = &messages[nmessages];

	CHECK(nmessages < MAX_MESSAGES, "too many messages");
	nmessages++;
	m->at = at;
	m->kind = kind;
	m->call = call;
	m->answer = answer;
}

static SagaTime
delay(void)
{
	return now + 1 + rnd(chance(100) ? 20 * (int) SAGA_SECOND : 20000);
}

static void
send_local(int id)
{
	Call	   *call = &calls[id];

	trace("  run locally: node %d %s", call->node, saga_op_name(call->op));
	if (!honest && chance(30))
		post(delay(), MSG_LOST, id, SAGA_ANSWER_DONE);
	else
		post(delay(), MSG_EXECUTE, id, SAGA_ANSWER_DONE);
}

static void
send_remote(int id)
{
	Call	   *call = &calls[id];
	Place	   *p = &place[call->node][call->target];
	int			fate = honest ? 999 : rnd(1000);
	int			hostility = 20 * fault_level;

	trace("  send: node %d %s%s%s", call->node, saga_op_name(call->op),
		  call->op == SAGA_OP_CLAIM && call->target ? " of undo" : "",
		  call->conditional ? " conditional" : "");
	CHECK(call->op == SAGA_OP_CLAIM || (p->intent > 0 && p->intent <= nflushed),
		  "node %d %s is sent before its intent is flushed", call->node,
		  saga_op_name(call->op));
	if (fate < hostility)		/* lost on the way there */
		post(now + CALL_TIMEOUT, MSG_ANSWER, id, SAGA_ANSWER_UNKNOWN);
	else if (fate < 2 * hostility)	/* on the way back */
	{
		post(delay(), MSG_SILENT, id, SAGA_ANSWER_DONE);
		post(now + CALL_TIMEOUT, MSG_ANSWER, id, SAGA_ANSWER_UNKNOWN);
	}
	else if (fate < 3 * hostility)	/* arrives when nobody expects it */
	{
		post(now + CALL_TIMEOUT, MSG_ANSWER, id, SAGA_ANSWER_UNKNOWN);
		post(now + CALL_TIMEOUT + rnd(100) * SAGA_SECOND,
			 chance(500) ? MSG_EXECUTE : MSG_SILENT, id, SAGA_ANSWER_DONE);
	}
	else if (fate < 4 * hostility)	/* cannot be sent */
		post(delay(), MSG_ANSWER, id, SAGA_ANSWER_TRANSIENT);
	else if (fate < 4 * hostility + hostility / 2)
	{
		if (chance(500))
			post(delay(), MSG_SILENT, id, SAGA_ANSWER_DONE);
		post(delay(), MSG_LOST, id, SAGA_ANSWER_DONE);
	}
	else
		post(delay(), MSG_EXECUTE, id, SAGA_ANSWER_DONE);
}

static void
send_allowed(void)
{
	int			kept = 0;
	int			n = noutbox;

	for (int i = 0; i < n; i++)
	{
		Call	   *call = &calls[outbox[i]];

		if (!call->open || call->epoch != epoch)
			continue;
		/* the ending action waits for the record of the last step in any case */
		if (call->need <= nflushed ||
			(call->local && call->node != SAGA_NODE_END && nheavy == 0))
		{
			if (call->local)
				send_local(outbox[i]);
			else
				send_remote(outbox[i]);
		}
		else
			outbox[kept++] = outbox[i];
	}
	noutbox = kept;
}

static void
flush(void)
{
	if (nflushed < nlog)
		trace("  flush %d", nlog);
	for (; nflushed < nlog; nflushed++)
	{
		const SagaRecord *r = &records[nflushed];

		/* consumed outcome rows go once their record is safe */
		if (r->kind == SAGA_RECORD_DONE && r->op == SAGA_OP_ACTION)
			place[r->node][0].outcome_row = false;
		if (r->kind == SAGA_RECORD_DONE && r->op == SAGA_OP_UNDO)
			place[r->node][1].outcome_row = false;
		if (r->kind == SAGA_RECORD_HOOK && r->node == SAGA_NODE_END &&
			r->answer == SAGA_ANSWER_DONE)
			hook_row = false;
	}
	nheavy = 0;
	send_allowed();
}

/* ------------------------------------------------------- the coordinator */

/* A failure that is final: was it allowed to be?  (fold is still before it.) */
static void
check_failure(const SagaRecord *r)
{
	const SagaNode *node = &nodes[r->node];
	const SagaStep *s = &fold->steps[r->node];
	int			broken = r->answer != SAGA_ANSWER_BROKEN ? 0 : 1 +
		(r->op == SAGA_OP_UNDO && s->status != SAGA_STEP_UNDO_BACKOFF ? 0 :
		 s->broken);

	if (r->op == SAGA_OP_UNDO)
		CHECK((r->due == 0) == (broken >= SAGA_BROKEN_LIMIT &&
								!fold->terminating),
			  "undo of node %d: %d broken answers, due %lld", r->node, broken,
			  (long long) r->due);
	if (r->op != SAGA_OP_ACTION)
		return;
	CHECK(r->attempt == s->attempts || r->attempt == s->attempts + 1,
		  "attempt %d of node %d after %d", r->attempt, r->node, s->attempts);
	CHECK(!(r->maybe && node->action_local), "a local step in doubt");
	CHECK(!(s->sticky && !r->maybe && r->answer != SAGA_ANSWER_DECLINED),
		  "node %d: doubt has vanished", r->node);
	if (fold->direction == SAGA_UNDO || fold->terminating)
		CHECK(r->due == 0, "node %d is to be tried again", r->node);
	else if (r->due == 0)
	{
		CHECK(broken == 0 || broken == SAGA_BROKEN_LIMIT,
			  "node %d is given up after %d broken answers", r->node, broken);
		if (r->answer == SAGA_ANSWER_TRANSIENT ||
			r->answer == SAGA_ANSWER_UNKNOWN)
			CHECK(!node->after_pivot && node->retry.max_attempts > 0 &&
				  r->attempt >= node->retry.max_attempts &&
				  !(node->pivot && r->maybe),
				  "node %d is given up after %d attempts", r->node, r->attempt);
	}
	else
		CHECK(r->answer != SAGA_ANSWER_DECLINED,
			  "node %d is tried again though declined", r->node);
}

/* Somebody is to be called: is there reason to?  (fold is before it.) */
static void
check_stuck(const SagaRecord *r)
{
	const SagaStep *pivot = graph.pivot >= 0 ? &fold->steps[graph.pivot] : NULL;

	if (r->reason == SAGA_STUCK_UNDO_FAILS)
		CHECK(fold->steps[r->node].attempts >= SAGA_UNDO_LIMIT &&
			  fold->steps[r->node].reason == SAGA_STUCK_NONE,
			  "node %d is reported after %d failures of its undo", r->node,
			  fold->steps[r->node].attempts);
	if (r->reason == SAGA_STUCK_HOOK_FAILS)
		CHECK(fold->hook.attempts >= 10, "a hook is reported after %d failures",
			  fold->hook.attempts);
	if (r->reason == SAGA_STUCK_DEADLINE)
		CHECK(pivot && (pivot->status == SAGA_STEP_DONE ||
						pivot->status == SAGA_STEP_SKIPPED ||
						pivot->continued),
			  "stuck by the deadline before the pivot's end");
	if (r->reason == SAGA_STUCK_DECLINED &&
		nodes[r->node].on_failure != SAGA_FAILURE_STUCK)
		CHECK(pivot && (nodes[r->node].after_pivot || pivot->maybe ||
						pivot->status == SAGA_STEP_DONE ||
						pivot->status == SAGA_STEP_SKIPPED ||
						pivot->continued),
			  "node %d is stuck where undo is possible", r->node);
}

/* May this call start, as the saga stands? */
static void
check_call(const SagaCommand *c)
{
	const SagaNode *node = c->node >= 0 ? &nodes[c->node] : NULL;

	CHECK(!live->paused, "a call starts while the saga is paused");
	CHECK(!live->terminating || c->op == SAGA_OP_CLAIM,
		  "a call starts while the saga is being terminated");
	CHECK(!live->deadline_stuck || c->op == SAGA_OP_CLAIM ||
		  c->op == SAGA_OP_HOOK, "a call starts after the deadline");
	if (c->op == SAGA_OP_CLAIM)
		CHECK(!(c->target == SAGA_OP_UNDO ? node->compensation_local :
				node->action_local), "a local call is claimed");
	if (c->op != SAGA_OP_ACTION)
		return;
	CHECK(live->direction == SAGA_FORWARD, "an action while undoing");
	CHECK(node->kind == SAGA_NODE_STEP, "node %d has no action", c->node);
	for (int k = 0; k < node->ndeps; k++)
	{
		const SagaStep *dep = &live->steps[node->deps[k]];

		CHECK(dep->status == SAGA_STEP_DONE ||
			  dep->status == SAGA_STEP_SKIPPED ||
			  (dep->status == SAGA_STEP_FAILED && dep->continued),
			  "node %d starts before node %d is over", c->node,
			  node->deps[k]);
	}
}

static void
take_record(const SagaRecord *r)
{
	CHECK(nlog < MAX_LOG, "the log is full");
	CHECK(r->seq == nlog + 1, "record %d follows %d", r->seq, nlog);
	trace_record(r);
	records[nlog++] = *r;
	decision_end[nlog - 1] = false;
	nrecords_total++;
	cov_record[r->kind]++;
	if (r->kind == SAGA_RECORD_STUCK)
		cov_reason[r->reason]++;
	if (r->kind == SAGA_RECORD_UNDO)
		cov_cause[r->cause]++;
	if (r->kind == SAGA_RECORD_INTENT && r->op == SAGA_OP_CLAIM &&
		r->node == graph.pivot && live->direction == SAGA_FORWARD &&
		!live->terminating && live->steps[r->node].status == SAGA_STEP_FAILED)
		cov[COV_PIVOT_CLAIMED]++;
	if (r->kind != SAGA_RECORD_STARTED && r->kind != SAGA_RECORD_DONE &&
		r->kind != SAGA_RECORD_INTENT)
		nheavy++;
	if (r->kind == SAGA_RECORD_INTENT && r->op != SAGA_OP_CLAIM)
		place[r->node][r->op == SAGA_OP_UNDO].intent = nlog;
	if (r->kind == SAGA_RECORD_FAILED)
		check_failure(r);
	if (r->kind == SAGA_RECORD_STUCK)
		check_stuck(r);
	CHECK(saga_machine_apply(fold, r), "the fold refuses record %d", r->seq);
}

static void
take_command(const SagaCommand *c)
{
	Call	   *call;

	if (c->kind == SAGA_CMD_ENDED)
	{
		trace("  ended");
		return;
	}
	if (c->kind == SAGA_CMD_CANCEL_CALL)
	{
		trace("  cancel call: node %d %s", c->node, saga_op_name(c->op));
		cov[COV_CANCEL_CALL]++;
		for (int i = 0; i < ncalls; i++)
			if (calls[i].open && calls[i].epoch == epoch &&
				calls[i].node == c->node && calls[i].op == c->op)
			{
				calls[i].open = false;
				return;
			}
		fail("node %d %s is cancelled but not out", c->node,
			 saga_op_name(c->op));
	}
	CHECK(ncalls < MAX_CALLS, "too many calls");
	CHECK(c->attempt >= 1, "attempt %d", c->attempt);
	call = &calls[ncalls];
	memset(call, 0, sizeof(*call));
	call->node = c->node;
	call->op = c->op;
	call->target = c->op == SAGA_OP_CLAIM ? c->target == SAGA_OP_UNDO :
		c->op == SAGA_OP_UNDO;
	call->conditional = c->conditional;
	call->local = c->node < 0 ||
		(c->op == SAGA_OP_ACTION && nodes[c->node].action_local) ||
		(c->op == SAGA_OP_UNDO && nodes[c->node].compensation_local);
	call->open = true;
	call->epoch = epoch;
	call->need = nlog;
	for (int i = 0; i < ncalls; i++)
		CHECK(!(calls[i].open && calls[i].epoch == epoch &&
				calls[i].node == c->node && calls[i].op == c->op),
			  "node %d %s is called while it is out", c->node,
			  saga_op_name(c->op));
	check_call(c);
	if (c->op == SAGA_OP_UNDO && c->attempt == 1)
		check_undo_order(c->node);
	if (c->node == SAGA_NODE_ON_STUCK)
		cov[COV_ON_STUCK]++;
	outbox[noutbox++] = ncalls++;
}

/* After decide() or resume(): write, send, check. */
static void
take_decision(void)
{
	ndecisions++;
	for (int i = 0; i < out.nrecords; i++)
		take_record(&out.records[i]);
	if (out.nrecords > 0)
		decision_end[nlog - 1] = true;
	for (int i = 0; i < out.ncommands; i++)
		take_command(&out.commands[i]);
	compare_states(live, fold);
	if (out.ignored && verbose)
		trace("    ignored: %s", out.ignored);
	if (live->nheld > 0 && live->direction == SAGA_FORWARD)
		cov[COV_HELD]++;
	if (!SAGA_STATE_ENDED(live->state))
		check_in_flight();
	else
		CHECK(out.ncommands == 0 ||
			  out.commands[out.ncommands - 1].kind == SAGA_CMD_ENDED,
			  "the last command of an ended saga does not say so");
	if (nflushed == nlog || chance(600))
		flush();
	else
		send_allowed();
}

static void
decide(SagaEvent *event)
{
	event->random = rnd_share();
	out.nrecords = 0;
	out.ncommands = 0;
	saga_machine_decide(live, event, now, &out);
	take_decision();
}

static SagaEvent
make_event(SagaEventKind kind)
{
	SagaEvent	event;

	memset(&event, 0, sizeof(event));
	event.kind = kind;
	event.node = SAGA_NO_NODE;
	return event;
}

static void
feed_outcome(int32 node, SagaOp op)
{
	SagaEvent	event = make_event(SAGA_EVENT_ANSWER);

	cov[COV_OUTCOME_FED]++;
	if (live->seq == 0)
		cov[COV_OUTCOME_FIRST]++;
	event.node = node;
	event.op = op;
	event.answer = SAGA_ANSWER_DONE;
	trace("  outcome found: node %d %s", node, saga_op_name(op));
	decide(&event);
}

static bool
is_recorded_done(int32 node, SagaOp op)
{
	const SagaStep *s;

	if (op == SAGA_OP_HOOK)
		return SAGA_STATE_ENDED(live->state);
	s = &live->steps[node];
	return op == SAGA_OP_ACTION ? s->happened : s->status == SAGA_STEP_UNDONE;
}

static void
fold_log(void)
{
	out_pool.used = 0;
	memset(&out, 0, sizeof(out));
	out.arena = &out_arena;
	live_pool.used = 0;
	fold_pool.used = 0;
	live = saga_machine_create(&graph, deadline, &live_arena);
	fold = saga_machine_create(&graph, deadline, &fold_arena);
	for (int i = 0; i < graph.nnodes; i++)
		place[i][0].intent = place[i][1].intent = 0;
	for (int i = 0; i < nlog; i++)
	{
		const SagaRecord *r = &records[i];

		CHECK(saga_machine_apply(live, r) && saga_machine_apply(fold, r),
			  "the log cannot be folded at record %d", r->seq);
		if (r->kind == SAGA_RECORD_INTENT && r->op != SAGA_OP_CLAIM)
			place[r->node][r->op == SAGA_OP_UNDO].intent = i + 1;
	}
	compare_states(live, fold);
	check_counts(fold);
}

static void
recover(void)
{
	epoch++;
	noutbox = 0;
	nheavy = 0;
	fold_log();
	for (int undo = 0; undo < 2; undo++)
		for (int i = 0; i < graph.nnodes; i++)
			if (place[i][undo].outcome_row &&
				!is_recorded_done(i, undo ? SAGA_OP_UNDO : SAGA_OP_ACTION))
				feed_outcome(i, undo ? SAGA_OP_UNDO : SAGA_OP_ACTION);
	if (hook_row && !is_recorded_done(SAGA_NODE_END, SAGA_OP_HOOK))
		feed_outcome(SAGA_NODE_END, SAGA_OP_HOOK);
	if (live->seq == 0)
	{
		SagaEvent	event = make_event(SAGA_EVENT_START);

		decide(&event);
		return;
	}
	trace("  resume");
	out.nrecords = 0;
	out.ncommands = 0;
	saga_machine_resume(live, now, &out);
	take_decision();
}

static void
crash(void)
{
	int			cut = chance(500) ? nflushed : nflushed + rnd(nlog - nflushed + 1);

	/* mostly a decision is lost as a whole, as one transaction is */
	if (chance(700))
		while (cut > nflushed && !decision_end[cut - 1])
			cut--;
	else if (cut > 0 && !decision_end[cut - 1])
		cov[COV_TORN_DECISION]++;
	trace("CRASH, of %d records %d remain", nlog, cut);
	cov[COV_CRASH]++;
	if (cut < nlog)
		cov[COV_TAIL_LOST]++;
	nlog = cut;
	nflushed = cut;
	recover();
	if (chance(150) && !SAGA_STATE_ENDED(live->state))
	{
		trace("CRASH again");
		cov[COV_CRASH_IN_RECOVERY]++;
		if (nlog > nflushed && chance(500))
			nlog = nflushed;
		nflushed = nlog;
		recover();
	}
}

/* A saga with nothing out leaves the memory and comes back. */
static void
evict(void)
{
	if (!saga_machine_may_evict(live))
		return;
	flush();
	trace("evicted and reloaded");
	cov[COV_CLEAN_RELOAD]++;
	fold_log();
	live->clean = true;
	out.nrecords = 0;
	out.ncommands = 0;
	saga_machine_resume(live, now, &out);
	take_decision();
}

/* ------------------------------------------------------- participants */

/* No effect that came after this one may be left, whatever the log says. */
static void
check_effects_after(int32 node)
{
	for (int k = 0; k < nodes[node].nnext; k++)
	{
		int32		next = nodes[node].next[k];

		if (place[next][0].effects == 1 && place[next][1].effects == 0 &&
			nodes[next].has_compensation && !place[next][0].forced &&
			!place[next][1].forced)
			CHECK(live->steps[next].status == SAGA_STEP_UNDONE ||
				  live->steps[next].status == SAGA_STEP_SKIPPED,
				  "node %d is undone while node %d still has its effect",
				  node, next);
		check_effects_after(next);
	}
}

static void
act(int32 node, int undo)
{
	Place	   *p = &place[node][undo];

	p->key = KEY_DONE;
	p->effects++;
	trace("  EFFECT: node %d %s", node, undo ? "undo" : "action");
	CHECK(p->effects == 1, "node %d: %s has happened twice", node,
		  undo ? "undo" : "action");
	if (!undo)
		return;
	if (nodes[node].kind == SAGA_NODE_STEP)
		CHECK(place[node][0].effects == 1,
			  "node %d: undo of what has not happened", node);
	if (graph.undo_order != SAGA_UNDO_PARALLEL && graph.nnodes <= 8)
		check_effects_after(node);
	if (graph.pivot >= 0)
		CHECK(place[graph.pivot][0].effects == 0,
			  "node %d: undo after the pivot has happened", node);
}

static SagaAnswerKind
mood(int32 node, int undo)
{
	Place	   *p = &place[node][undo];

	if (!undo && declines[node] && p->key == KEY_FREE)
		return SAGA_ANSWER_DECLINED;
	if (honest)
		return SAGA_ANSWER_DONE;
	if (p->broken && chance(900))
		return SAGA_ANSWER_BROKEN;
	if (chance(p->fail))
	{
		static const uint8 kinds[] = {SAGA_ANSWER_TRANSIENT,
			SAGA_ANSWER_TRANSIENT, SAGA_ANSWER_TRANSIENT,
		SAGA_ANSWER_DECLINED, SAGA_ANSWER_BROKEN};

		return kinds[rnd(5)];
	}
	return SAGA_ANSWER_DONE;
}

/* What an executor does; effect and outcome row are one commit. */
static SagaAnswerKind
execute_local(const Call *call)
{
	Place	   *p;
	SagaAnswerKind answer;

	if (call->node == SAGA_NODE_ON_STUCK)
	{
		stuck_calls++;
		return honest ? SAGA_ANSWER_DONE : (SagaAnswerKind) rnd(4);
	}
	if (call->node == SAGA_NODE_END)
	{
		if (hook_row)
			return SAGA_ANSWER_DONE;
		if (!honest && chance(hook_fail))
			return SAGA_ANSWER_DECLINED + rnd(3);
		hook_row = true;
		hook_effects++;
		CHECK(hook_effects == 1, "the ending hook has run twice");
		trace("  EFFECT: ending hook");
		return SAGA_ANSWER_DONE;
	}
	p = &place[call->node][call->target];
	if (p->outcome_row)
		return SAGA_ANSWER_DONE;
	answer = mood(call->node, call->target);
	if (answer != SAGA_ANSWER_DONE)
		return answer;
	p->outcome_row = true;
	if (call->conditional)
	{
		Place	   *action = &place[call->node][0];

		if (action->key != KEY_DONE)
		{
			action->key = KEY_REFUSED;
			return SAGA_ANSWER_DONE;
		}
	}
	act(call->node, call->target);
	return SAGA_ANSWER_DONE;
}

static SagaAnswerKind
execute_remote(const Call *call)
{
	Place	   *p = &place[call->node][call->target];
	SagaAnswerKind answer = mood(call->node, call->target);

	if (call->op == SAGA_OP_CLAIM)
	{
		if (!honest && chance(p->fail))
			return SAGA_ANSWER_DECLINED + rnd(3);
		if (p->key == KEY_DONE)
			return SAGA_ANSWER_DONE;
		p->key = KEY_REFUSED;
		trace("  key refused: node %d %s", call->node,
			  call->target ? "undo" : "action");
		return SAGA_ANSWER_REFUSED;
	}
	if (p->key == KEY_DONE && (honest || !chance(p->fail)))
		return SAGA_ANSWER_DONE;
	if (p->key == KEY_REFUSED)
		return SAGA_ANSWER_REFUSED;
	if (answer != SAGA_ANSWER_DONE)
		return answer;
	if (p->key == KEY_DONE)
		return SAGA_ANSWER_TRANSIENT;
	if (call->op == SAGA_OP_UNDO && call->conditional)
	{
		Place	   *action = &place[call->node][0];

		if (action->key == KEY_FREE)
			action->key = KEY_REFUSED;
		if (action->key == KEY_REFUSED)
		{
			cov[COV_UNDO_NOTHING]++;
			p->key = KEY_DONE;
			return SAGA_ANSWER_DONE;
		}
		cov[COV_UNDO_RUN]++;
	}
	act(call->node, call->target);
	return SAGA_ANSWER_DONE;
}

static bool
is_awaited(const Call *call)
{
	for (int i = 0; i < ncalls; i++)
		if (calls[i].open && calls[i].epoch == epoch &&
			calls[i].node == call->node && calls[i].op == call->op)
			return true;
	return false;
}

static void
deliver(int id, SagaAnswerKind answer)
{
	Call	   *call = &calls[id];
	SagaEvent	event = make_event(SAGA_EVENT_ANSWER);
	bool		stale = !call->open;

	if (call->epoch != epoch)
		return;

	/*
	 * The one thing a coordinator must not do is take an earlier call's "no"
	 * for that of the call that is out.
	 */
	if (stale)
	{
		if (answer != SAGA_ANSWER_DONE && is_awaited(call))
			return;
		if (call->op == SAGA_OP_CLAIM && is_awaited(call))
			return;
		cov[COV_STALE_ANSWER]++;
	}
	if (answer == SAGA_ANSWER_UNKNOWN)
	{
		if (stale)
			return;
		cov[COV_TIMEOUT]++;
		call->timed_out = true;
	}
	event.node = call->node;
	event.op = call->op;
	event.answer = answer;
	if (answer != SAGA_ANSWER_DONE && !honest && chance(50))
	{
		event.free = true;
		cov[COV_FREE_ANSWER]++;
	}
	if (answer == SAGA_ANSWER_TRANSIENT && chance(100))
	{
		event.retry_after = rnd(200) * SAGA_SECOND;
		cov[COV_RETRY_AFTER]++;
	}
	cov_answer[call->op][answer]++;
	if (call->op == SAGA_OP_CLAIM && !stale)
		cov[answer == SAGA_ANSWER_DONE ? COV_CLAIM_DONE :
			answer == SAGA_ANSWER_REFUSED ? COV_CLAIM_REFUSED :
			COV_CLAIM_FAILED]++;
	trace("answer%s: node %d %s %s", stale ? " (stale)" : "", call->node,
		  saga_op_name(call->op), saga_answer_name(answer));
	/* an answer is that of the operation, whichever call brought it */
	for (int i = 0; i < ncalls; i++)
		if (calls[i].epoch == epoch && calls[i].node == call->node &&
			calls[i].op == call->op)
			calls[i].open = false;
	decide(&event);
	if (!honest && chance(20) && !is_awaited(call))
	{
		trace("answer again");
		cov[COV_STALE_ANSWER]++;
		decide(&event);
	}
}

static void
handle_message(Message m)
{
	Call	   *call = &calls[m.call];
	SagaAnswerKind answer;

	switch (m.kind)
	{
		case MSG_EXECUTE:
		case MSG_SILENT:
			if (call->local)
			{
				/* executors go with the coordinator; see recover() */
				if (call->epoch != epoch)
					return;
				answer = execute_local(call);
			}
			else
			{
				if (call->timed_out || call->epoch != epoch)
					cov[COV_LATE_EFFECT]++;
				answer = execute_remote(call);
			}
			if (m.kind == MSG_EXECUTE)
				post(delay(), MSG_ANSWER, m.call, answer);
			if (answer == SAGA_ANSWER_DONE && !call->local && !honest &&
				chance(20 * fault_level))
			{
				/* delivered twice: the key is found, the answer the same */
				cov[COV_DUPLICATE]++;
				CHECK(call->op == SAGA_OP_CLAIM ||
					  place[call->node][call->target].key == KEY_DONE,
					  "a key is not kept");
				post(delay(), MSG_ANSWER, m.call, answer);
			}
			return;
		case MSG_ANSWER:
			deliver(m.call, m.answer);
			return;
		case MSG_LOST:
			if (call->open && call->epoch == epoch)
			{
				SagaEvent	event = make_event(SAGA_EVENT_LOST);

				trace("lost: node %d %s", call->node, saga_op_name(call->op));
				cov[COV_LOST_CALL]++;
				call->open = false;
				event.node = call->node;
				event.op = call->op;
				decide(&event);
			}
			return;
	}
}

/* ------------------------------------------------------- the operator */

static void
use_verb(SagaVerb verb, int32 node, bool force)
{
	SagaEvent	event = make_event(SAGA_EVENT_VERB);
	bool		undo = live->direction == SAGA_UNDO;
	const char *refusal = saga_machine_verb_refusal(live, verb, node, force);

	event.verb = verb;
	event.node = node;
	event.force = force;
	trace("verb: %s %d%s", saga_verb_name(verb), node, force ? " force" : "");
	if (force && refusal == NULL)
	{
		cov[COV_FORCED]++;
		if (verb == SAGA_VERB_SKIP_STEP && node >= 0)
			place[node][undo].forced = true;
		if (verb == SAGA_VERB_TERMINATE)
			for (int i = 0; i < graph.nnodes; i++)
				place[i][0].forced = place[i][1].forced = true;
	}
	decide(&event);
	cov_verb[verb][out.ignored != NULL]++;
	CHECK(out.ignored == refusal, "verb %s: %s, but %s",
		  saga_verb_name(verb), refusal ? refusal : "(accepted)",
		  out.ignored ? out.ignored : "(accepted)");
}

static void
use_random_verb(void)
{
	static const uint8 verbs[] = {
		SAGA_VERB_CANCEL, SAGA_VERB_CANCEL, SAGA_VERB_PAUSE,
		SAGA_VERB_PAUSE, SAGA_VERB_RESUME, SAGA_VERB_RESUME,
		SAGA_VERB_RETRY_STEP, SAGA_VERB_RETRY_STEP, SAGA_VERB_RETRY_STEP,
		SAGA_VERB_SKIP_STEP, SAGA_VERB_SKIP_STEP, SAGA_VERB_SKIP_STEP,
		SAGA_VERB_SKIP_STEP, SAGA_VERB_TERMINATE
	};
	SagaVerb	verb = verbs[rnd(14)];
	int32		node = SAGA_NO_NODE;

	if (verb == SAGA_VERB_RETRY_STEP || verb == SAGA_VERB_SKIP_STEP)
		node = rnd(graph.nnodes + 1) - 1;
	use_verb(verb, node, chance(150));
}

/* Nothing moves any more: there must be a reason, and a verb that helps. */
static void
help(int64 round)
{
	int32		node = live->stuck_node;

	CHECK(live->in_flight == 0, "quiet with %d calls out", live->in_flight);
	if (live->paused)
	{
		use_verb(SAGA_VERB_RESUME, SAGA_NO_NODE, false);
		return;
	}
	CHECK(live->state == SAGA_STUCK, "quiet, but %s",
		  saga_state_name(live->state));
	CHECK(live->stuck_reason != SAGA_STUCK_NONE, "stuck without a reason");
	cov[COV_OPERATOR_NEEDED]++;
	if (live->stuck_reason == SAGA_STUCK_DEADLINE)
		use_verb(SAGA_VERB_RESUME, SAGA_NO_NODE, false);
	else if (round % 3 == 0)
		use_verb(SAGA_VERB_RETRY_STEP, node, false);
	else if (round % 3 == 1)
		use_verb(SAGA_VERB_SKIP_STEP, node, false);
	else
		use_verb(SAGA_VERB_TERMINATE, SAGA_NO_NODE, false);
	CHECK(out.ignored == NULL, "no verb helps: %s", out.ignored);
}

/* ------------------------------------------------------- one saga */

static void
make_retry(SagaRetry *retry)
{
	static const int attempts[] = {0, 1, 2, 3, 5};

	retry->max_attempts = attempts[rnd(5)];
	retry->initial_interval = rnd(3) * SAGA_SECOND;
	retry->max_interval = chance(100) ? 0 : 60 * SAGA_SECOND;
	retry->backoff = chance(100) ? 1e30 : 2.0;
	retry->jitter = chance(500) ? 0.2 : 0.0;
}

static void
make_node(int i, int position, int pivot, const int *order)
{
	SagaNode   *node = &nodes[i];
	int			shape = rnd(10);

	memset(node, 0, sizeof(*node));
	node->name = "step";
	node->deps = deps[i];
	if (position > 0 && shape < 5)
		node->deps[node->ndeps++] = order[position - 1];
	else if (position > 0 && shape < 8)
		for (int k = rnd(3); k >= 0; k--)
			node->deps[node->ndeps++] = order[rnd(position)];
	node->pivot = position == pivot;
	node->kind = !node->pivot && chance(50) ? SAGA_NODE_UNDO : SAGA_NODE_STEP;
	node->has_compensation = node->kind == SAGA_NODE_UNDO ||
		(!node->pivot && chance(850));
	node->action_local = chance(400);
	node->compensation_local = chance(100) ? chance(500) : node->action_local;
	node->on_failure = chance(750) ? SAGA_FAILURE_DEFAULT : rnd(4);
	make_retry(&node->retry);
	make_retry(&node->undo_retry);
	waived[i] = !node->has_compensation;
}

static void
make_graph(void)
{
	int			order[MAX_NODES];
	int			n = chance(20) ? 0 : chance(20) ? 9 + rnd(22) : 1 + rnd(8);
	int			pivot = n > 0 && chance(450) ? rnd(n) : -1;
	SagaGraphFault fault;

	memset(&graph, 0, sizeof(graph));
	graph.nnodes = n;
	graph.nodes = nodes;
	graph.undo_order = rnd(3);
	graph.has_on_completed = chance(300);
	graph.has_on_compensated = chance(300);
	graph.has_on_stuck = chance(300);
	for (int i = 0; i < n; i++)
	{
		int			j = rnd(i + 1);

		order[i] = order[j];
		order[j] = i;
	}
	for (int i = 0; i < n; i++)
		make_node(order[i], i, pivot, order);
	graph_pool.used = 0;
	CHECK(saga_graph_finish(&graph, waived, &graph_arena, &fault, 1) == 0,
		  "the graph has a fault %d at %d", fault.kind, fault.node);
	cov[COV_BIG_GRAPH] += n > 8;
	cov[COV_EMPTY_GRAPH] += n == 0;
}

static void
make_world(void)
{
	rng = seed * UINT64_C(0xd1342543de82ef95) + (uint64) number;
	next_random();
	now = 700000000 * SAGA_SECOND;
	nlog = nflushed = nheavy = 0;
	ncalls = noutbox = nmessages = 0;
	epoch = 0;
	honest = false;
	hook_row = false;
	hook_effects = stuck_calls = 0;
	hook_fail = chance(100) ? 950 : 100;
	fault_level = rnd(4);
	chaos = chance(200) ? 1 + rnd(8) : 1;
	make_graph();
	memset(place, 0, sizeof(place));
	for (int i = 0; i < graph.nnodes; i++)
	{
		declines[i] = chance(60);
		for (int undo = 0; undo < 2; undo++)
		{
			place[i][undo].fail = chance(60) ? 950 : 60 * fault_level;
			place[i][undo].broken = chance(20);
		}
	}
	deadline = chance(250) ? now + rnd(300) * SAGA_SECOND : SAGA_NEVER;
	fold_log();
}

static int
earliest_message(void)
{
	int			best = -1;

	for (int i = 0; i < nmessages; i++)
		if (best < 0 || messages[i].at < messages[best].at)
			best = i;
	return best;
}

static Message
take_message(int i)
{
	Message		m = messages[i];

	messages[i] = messages[--nmessages];
	return m;
}

/* Let the next thing happen; false if there is none. */
static bool
step_world(void)
{
	int			i = earliest_message();
	SagaTime	due = saga_machine_next_due(live);

	if (i >= 0 && messages[i].at <= due)
	{
		Message		m = take_message(i);

		now = Max(now, m.at);
		handle_message(m);
		return true;
	}
	if (due != SAGA_NEVER)
	{
		SagaEvent	event = make_event(SAGA_EVENT_TIMER);

		now = Max(now, due);
		trace("timer");
		decide(&event);
		CHECK(saga_machine_next_due(live) > now, "the timer is due at once");
		return true;
	}
	if (nflushed < nlog || noutbox > 0)
	{
		flush();
		return true;
	}
	return false;
}

static void
disturb(void)
{
	int			what = rnd(1000 / chaos);

	if (what < 30)
		use_random_verb();
	else if (what < 45)
		crash();
	else if (what < 52)
		evict();
	else if (what < 60)
	{
		cov[COV_CLOCK_JUMP]++;
		now += rnd(600) * SAGA_SECOND;
	}
	else if (what < 65)
	{
		SagaEvent	event = make_event(rnd(SAGA_EVENT_VERB));

		event.node = -4 - rnd(2) * 1000;
		event.op = rnd(SAGA_OP_CLAIM + 1);
		event.answer = rnd(SAGA_ANSWER_REFUSED + 1);
		if (event.kind == SAGA_EVENT_START ||
			(event.kind != SAGA_EVENT_TIMER &&
			 event.node < SAGA_NODE_ON_STUCK))
		{
			trace("nonsense");
			decide(&event);
			CHECK(out.nrecords == 0, "nonsense has an effect");
		}
	}
}

/* Nothing may come out of an ended saga. */
static void
check_silence(void)
{
	for (int i = 0; i < 3; i++)
	{
		SagaEvent	event = make_event(rnd(SAGA_EVENT_VERB + 1));

		event.node = rnd(graph.nnodes + 3) - 3;
		event.op = rnd(SAGA_OP_CLAIM + 1);
		event.answer = rnd(SAGA_ANSWER_REFUSED + 1);
		event.verb = rnd(SAGA_VERB_SKIP_STEP + 1);
		out.nrecords = out.ncommands = 0;
		saga_machine_decide(live, &event, now, &out);
		CHECK(out.nrecords == 0 && out.ncommands == 0 && out.ignored,
			  "an ended saga answers an event");
	}
	CHECK(saga_machine_next_due(live) == SAGA_NEVER,
		  "an ended saga wants to wake up");
}

static bool
undo_is_skipped(int i)
{
	for (int k = 0; k < nlog; k++)
		if (records[k].kind == SAGA_RECORD_SKIPPED && records[k].node == i &&
			records[k].op == SAGA_OP_UNDO)
			return true;
	return false;
}

static void
check_node_end(int i)
{
	const SagaStep *s = &live->steps[i];
	const Place *action = &place[i][0];
	const Place *undo = &place[i][1];
	bool		undone = s->status == SAGA_STEP_UNDONE;
	int			happened = nodes[i].kind == SAGA_NODE_UNDO ? s->happened :
		action->effects;

	if (action->forced)
		return;
	/* the ending hook has committed, the record of the step was lost */
	if (hook_effects == 1 && s->status <= SAGA_STEP_BACKOFF)
	{
		if (live->state == SAGA_COMPLETED)
			CHECK(happened == 1 || nodes[i].kind == SAGA_NODE_UNDO,
				  "completed by the hook, but node %d is not", i);
		else
			CHECK(undo->effects == 0 && !(happened == 1 &&
										  nodes[i].has_compensation),
				  "compensated by the hook, but node %d is not", i);
		return;
	}
	if (s->happened)
		CHECK(happened == 1, "node %d is done, without effect", i);
	else if (s->status == SAGA_STEP_SKIPPED || !s->maybe)
		CHECK(happened == 0 || undone,
			  "node %d is not done, but has an effect", i);

	if (live->state == SAGA_COMPLETED)
	{
		CHECK(s->status == SAGA_STEP_DONE || s->status == SAGA_STEP_SKIPPED ||
			  (s->status == SAGA_STEP_FAILED && s->continued),
			  "completed, but node %d is not (%d)", i, s->status);
		CHECK(undo->effects == 0, "completed, but node %d is undone", i);
	}
	if (undo->forced)
		return;
	if (undo->effects > 0)
		CHECK(happened == 1, "node %d: undo without action", i);
	if (live->state == SAGA_COMPENSATED && nodes[i].has_compensation &&
		s->status != SAGA_STEP_SKIPPED)
	{
		if (undo_is_skipped(i))
			CHECK(undo->effects == 0, "node %d: a skipped undo has run", i);
		else
			CHECK(undo->effects == happened,
				  "compensated, but node %d has %d effects and %d undos", i,
				  happened, undo->effects);
	}
	if (live->state == SAGA_TERMINATED)
	{
		if (!undone)
			CHECK(undo->effects == 0 || s->undo_maybe,
				  "terminated, node %d: undo not recorded", i);
		CHECK(!s->maybe || undone || s->status >= SAGA_STEP_UNDO_CALLING,
			  "terminated with node %d in doubt", i);
		CHECK(!s->undo_maybe, "terminated with the undo of %d in doubt", i);
	}
}

static void
check_end(void)
{
	flush();
	cov_state[live->state]++;
	cov_cause[live->cause]++;
	check_silence();

	/* what was on its way arrives, and must do no harm */
	while (nmessages > 0)
	{
		Message		m = take_message(earliest_message());

		now = Max(now, m.at);
		if (m.kind == MSG_EXECUTE || m.kind == MSG_SILENT)
		{
			if (!calls[m.call].local)
				execute_remote(&calls[m.call]);
		}
	}
	if (live->state == SAGA_COMPENSATED && graph.pivot >= 0)
		CHECK(place[graph.pivot][0].effects == 0 ||
			  place[graph.pivot][0].forced,
			  "compensated, but the pivot has happened");
	for (int i = 0; i < graph.nnodes; i++)
		check_node_end(i);
	if (live->state == SAGA_COMPLETED || live->state == SAGA_COMPENSATED)
	{
		bool		has_hook = live->state == SAGA_COMPLETED ?
			graph.has_on_completed : graph.has_on_compensated;

		CHECK(hook_effects == 0 || has_hook, "a hook has run");
		CHECK(!has_hook || hook_effects == 1 ||
			  live->hook.status == SAGA_STEP_SKIPPED,
			  "the hook has not run");
	}
	nlog = nflushed;
	fold_log();
	CHECK(SAGA_STATE_ENDED(live->state), "the log does not end");
	out.nrecords = out.ncommands = 0;
	saga_machine_resume(live, now, &out);
	CHECK(out.nrecords == 0 && out.ncommands == 0,
		  "recovery of an ended saga does something");
}

/* Any record may come out of a damaged log. */
static void
fuzz_fold(void)
{
	int			keep = rnd(nlog + 1);

	nlog = nflushed = keep;
	fold_log();
	for (int i = 0; i < 60; i++)
	{
		SagaRecord	r;
		int32		seq = fold->seq;

		memset(&r, 0, sizeof(r));
		r.seq = chance(20) ? rnd(10) : seq + 1;
		r.kind = chance(20) ? rnd(256) : rnd(SAGA_RECORD_ENDED);
		r.op = chance(20) ? rnd(256) : rnd(SAGA_OP_CLAIM + 1);
		r.answer = chance(20) ? rnd(256) : rnd(SAGA_ANSWER_REFUSED + 1);
		r.state = chance(20) ? rnd(256) : rnd(SAGA_TERMINATED + 1);
		r.cause = chance(20) ? rnd(256) : rnd(SAGA_CAUSE_OPERATOR + 1);
		r.reason = chance(20) ? rnd(256) : rnd(SAGA_STUCK_HOOK_FAILS + 1);
		r.maybe = chance(500);
		r.node = chance(20) ? (int32) next_random() : rnd(graph.nnodes + 3) - 3;
		r.attempt = chance(50) ? (int32) next_random() : rnd(12);
		r.due = chance(500) ? 0 : chance(50) ? (SagaTime) next_random() :
			now + rnd(100) * SAGA_SECOND;
		if (saga_machine_apply(fold, &r))
		{
			cov[COV_FUZZ_ACCEPTED]++;
			CHECK(fold->seq == seq + 1, "seq %d after %d", fold->seq, seq);
			check_counts(fold);
		}
		else
		{
			cov[COV_FUZZ_REFUSED]++;
			CHECK(fold->seq == seq, "a refused record has an effect");
		}
	}

	/* what such a log leads to must not crash either */
	out.nrecords = out.ncommands = 0;
	saga_machine_resume(fold, now, &out);
	for (int i = 0; i < 10; i++)
	{
		SagaEvent	event = make_event(rnd(SAGA_EVENT_VERB + 1));

		event.node = rnd(graph.nnodes + 3) - 3;
		event.op = rnd(SAGA_OP_CLAIM + 1);
		event.answer = rnd(SAGA_ANSWER_REFUSED + 1);
		event.verb = rnd(SAGA_VERB_SKIP_STEP + 1);
		event.force = chance(300);
		now += rnd(100) * SAGA_SECOND;
		saga_machine_decide(fold, &event, now, &out);
	}
}

static void
run_saga(void)
{
	int			budget;
	int64		helped = 0;
	SagaEvent	event = make_event(SAGA_EVENT_START);

	make_world();
	budget = 5 + rnd(chance(200) ? 200 : 50);
	if (verbose)
		for (int i = 0; i < graph.nnodes; i++)
			trace("node %d: kind %d, after %d nodes (%d...), comp %d, local %d/%d,"
				  " pivot %d, on_failure %d, attempts %d, declines %d", i,
				  nodes[i].kind, nodes[i].ndeps,
				  nodes[i].ndeps ? nodes[i].deps[0] : -1,
				  nodes[i].has_compensation, nodes[i].action_local,
				  nodes[i].compensation_local, nodes[i].pivot,
				  nodes[i].on_failure, nodes[i].retry.max_attempts,
				  declines[i]);
	if (chance(20))
		use_random_verb();		/* before it has started */
	decide(&event);
	for (int n = 0; !SAGA_STATE_ENDED(live->state); n++)
	{
		CHECK(n < MAX_EVENTS, "the saga does not end");
		if (!honest && n >= budget)
		{
			trace("the world is honest");
			honest = true;
		}
		if (!honest)
			disturb();
		if (SAGA_STATE_ENDED(live->state))
			break;
		if (step_world())
			continue;
		if (!honest && chance(700))
			use_random_verb();
		else if (!honest)
			honest = true;
		else
			help(helped++);
	}
	check_end();
	if (chance(30))
		fuzz_fold();
}

/* ------------------------------------------------------- report */

static int	missing;

static void
show(const char *group, const char *name, int64 n, bool required)
{
	printf("  %-10s %-32s %12lld%s\n", group, name, (long long) n,
		   n == 0 && required ? "   NEVER" : "");
	missing += n == 0 && required;
}

static void
report(int64 count, double seconds)
{
	printf("%lld sagas in %.1f s: %.2f million decisions/s, %.2f million"
		   " records/s, world and checks included\n", (long long) count,
		   seconds, (double) ndecisions / seconds / 1e6,
		   (double) nrecords_total / seconds / 1e6);
	for (int i = SAGA_COMPLETED; i <= SAGA_TERMINATED; i++)
		show("end", saga_state_name(i), cov_state[i], true);
	for (int i = 0; i <= SAGA_RECORD_ENDED; i++)
		show("record", saga_record_name(i), cov_record[i], true);
	for (int i = SAGA_CAUSE_DECLINED; i <= SAGA_CAUSE_OPERATOR; i++)
		show("cause", saga_cause_name(i), cov_cause[i],
			 i != SAGA_CAUSE_ABORTED);
	for (int i = SAGA_STUCK_DECLINED; i <= SAGA_STUCK_HOOK_FAILS; i++)
		show("stuck", saga_stuck_reason_name(i), cov_reason[i], true);
	for (int op = 0; op <= SAGA_OP_CLAIM; op++)
		for (int i = 0; i <= SAGA_ANSWER_REFUSED; i++)
			show(saga_op_name(op), saga_answer_name(i), cov_answer[op][i],
				 op != SAGA_OP_HOOK || i < SAGA_ANSWER_UNKNOWN);
	for (int i = 0; i <= SAGA_VERB_SKIP_STEP; i++)
	{
		show("verb", saga_verb_name(i), cov_verb[i][0], true);
		show("ignored", saga_verb_name(i), cov_verb[i][1], true);
	}
	for (int i = 0; i < COV_COUNT; i++)
		show("world", cov_names[i], cov[i], true);
}

/* The faults that saga_graph_finish() must find. */
static void
check_graph_faults(void)
{
	static const struct
	{
		int			deps[4][2];	/* 1 + node, 0 = none */
		int			pivots;		/* bit mask */
		int			no_undo;	/* bit mask */
		int			nfaults;
		SagaGraphFaultKind kind;
		int			nodes;		/* the first fault is at one of these */
	}			cases[] = {
		{{{0}, {1}, {2}, {3}}, 1 << 2, 0xc, 0, SAGA_GRAPH_OK, 0},
		{{{0}, {1, 4}, {2}, {3}}, 0, 0, 1, SAGA_GRAPH_CYCLE, 0xe},
		{{{2}, {1}, {4}, {3}}, 0, 0, 2, SAGA_GRAPH_CYCLE, 0x3},
		{{{2}, {1}, {2}, {3}}, 0, 0, 1, SAGA_GRAPH_CYCLE, 0x3},
		{{{1}, {1}, {0}, {0}}, 0, 0, 1, SAGA_GRAPH_CYCLE, 0x1},
		{{{0}, {1}, {2}, {3}}, 3, 0, 1, SAGA_GRAPH_TWO_PIVOTS, 0x2},
		{{{0}, {1}, {0}, {3}}, 1, 0xa, 1, SAGA_GRAPH_UNDO_MISSING, 0x8},
		{{{0}, {0}, {0}, {0}}, 0, 0x4, 1, SAGA_GRAPH_UNDO_MISSING, 0x4},
	};

	for (size_t k = 0; k < sizeof(cases) / sizeof(cases[0]); k++)
	{
		SagaGraphFault faults[1] = {{SAGA_GRAPH_OK, 0}};
		int			n;

		memset(&graph, 0, sizeof(graph));
		memset(nodes, 0, sizeof(nodes));
		graph.nnodes = 4;
		graph.nodes = nodes;
		for (int i = 0; i < 4; i++)
		{
			nodes[i].deps = deps[i];
			for (int j = 0; j < 2; j++)
				if (cases[k].deps[i][j] > 0)
					nodes[i].deps[nodes[i].ndeps++] = cases[k].deps[i][j] - 1;
			nodes[i].pivot = (cases[k].pivots >> i) & 1;
			nodes[i].has_compensation = !((cases[k].no_undo >> i) & 1);
		}
		graph_pool.used = 0;
		n = saga_graph_finish(&graph, NULL, &graph_arena, faults, 1);
		CHECK(n == cases[k].nfaults && faults[0].kind == cases[k].kind &&
			  (n == 0 || (cases[k].nodes >> faults[0].node) & 1),
			  "graph %d: %d faults, the first %d at node %d", (int) k, n,
			  faults[0].kind, faults[0].node);
	}
}

/* The words and their reverse. */
static void
check_names(void)
{
	for (int i = 0; i <= SAGA_RECORD_REOPENED; i++)
		CHECK(saga_record_from_name(saga_record_name(i)) == i, "record %d", i);
	for (int i = 0; i <= SAGA_OP_EVAL; i++)
		CHECK(saga_op_from_name(saga_op_name(i)) == i, "op %d", i);
	for (int i = 0; i <= SAGA_ANSWER_ACCEPTED; i++)
		CHECK(saga_answer_from_name(saga_answer_name(i)) == i, "answer %d", i);
	for (int i = 0; i <= SAGA_TERMINATED; i++)
		CHECK(saga_state_from_name(saga_state_name(i)) == i, "state %d", i);
	for (int i = 0; i <= SAGA_CAUSE_OPERATOR; i++)
		CHECK(saga_cause_from_name(saga_cause_name(i)) == i, "cause %d", i);
	for (int i = 0; i <= SAGA_STUCK_HOOK_FAILS; i++)
		CHECK(saga_stuck_reason_from_name(saga_stuck_reason_name(i)) == i,
			  "reason %d", i);
	CHECK(saga_record_from_name("no such") == -1 &&
		  saga_record_from_name(NULL) == -1, "an unknown word is known");
}

/* The machine alone: four remote steps, nothing fails, nothing is checked. */
static void
measure(void)
{
	struct timespec t0,
				t1;
	int64		n = 0;
	double		seconds;
	SagaGraphFault fault;
	SagaState  *state;

	memset(&graph, 0, sizeof(graph));
	memset(nodes, 0, sizeof(nodes));
	graph.nnodes = 4;
	graph.nodes = nodes;
	for (int i = 0; i < 4; i++)
	{
		nodes[i].has_compensation = true;
		nodes[i].deps = deps[i];
		if (i > 0)
			nodes[i].deps[nodes[i].ndeps++] = i - 1;
	}
	graph_pool.used = 0;
	saga_graph_finish(&graph, NULL, &graph_arena, &fault, 1);
	out_pool.used = 0;
	memset(&out, 0, sizeof(out));
	out.arena = &out_arena;
	clock_gettime(CLOCK_MONOTONIC, &t0);
	for (int k = 0; k < 200000; k++)
	{
		SagaEvent	event = make_event(SAGA_EVENT_START);

		live_pool.used = 0;
		state = saga_machine_create(&graph, SAGA_NEVER, &live_arena);
		for (int i = -1; i < 4; i++, n++)
		{
			out.nrecords = out.ncommands = 0;
			saga_machine_decide(state, &event, now, &out);
			event.kind = SAGA_EVENT_ANSWER;
			event.node = i + 1;
		}
	}
	clock_gettime(CLOCK_MONOTONIC, &t1);
	seconds = (double) (t1.tv_sec - t0.tv_sec) +
		(double) (t1.tv_nsec - t0.tv_nsec) / 1e9;
	printf("machine alone, 4 steps: %.2f million transitions/s\n",
		   (double) n / seconds / 1e6);
}

int
main(int argc, char **argv)
{
	int64		args[3] = {0, 0, 1000000};
	int			nargs = 0;
	struct timespec t0,
				t1;

	args[0] = (int64) time(NULL);
	for (int i = 1; i < argc; i++)
	{
		if (strcmp(argv[i], "-v") == 0)
			verbose = true;
		else if (nargs < 3)
			args[nargs++] = strtoll(argv[i], NULL, 10);
	}
	seed = (uint64) args[0];
	printf("seed %llu, sagas %lld to %lld\n", (unsigned long long) seed,
		   (long long) args[1], (long long) (args[1] + args[2] - 1));
	fflush(stdout);
	graph_arena = pool_create(&graph_pool, 1 << 16);
	live_arena = pool_create(&live_pool, 1 << 16);
	fold_arena = pool_create(&fold_pool, 1 << 16);
	out_arena = pool_create(&out_pool, 1 << 24);

	clock_gettime(CLOCK_MONOTONIC, &t0);
	if (setjmp(failed))
	{
		/* once more, to see how it came to that */
		if (verbose || number < args[1])
			return 1;
		verbose = true;
		run_saga();
		printf("(it did not fail again)\n");
		return 1;
	}
	number = args[1] - 1;
	check_graph_faults();
	check_names();
	for (number = args[1]; number < args[1] + args[2]; number++)
		run_saga();
	clock_gettime(CLOCK_MONOTONIC, &t1);
	report(args[2], (double) (t1.tv_sec - t0.tv_sec) +
		   (double) (t1.tv_nsec - t0.tv_nsec) / 1e9);
	measure();
	if (missing > 0 && args[2] >= 100000)
	{
		printf("FAILED  %d things never happened\n", missing);
		return 1;
	}
	printf("ok\n");
	return 0;
}
