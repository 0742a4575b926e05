/*
 * sim_check.c
 *		What must hold of the machine, at each step and at the end (see
 *		machine_sim.c).
 *
 * The promises are judged by the effects at the participants and by the log,
 * with an order of steps found here from the graph alone.
 */
#include "sim.h"

/* ------------------------------------------------------- the fold */

/* The one ephemeral status is that of a local call, or an expression. */
static int
lasting_status(const SagaState *state, int i)
{
	const SagaStep *s = &state->steps[i];
	const SagaNode *node = &nodes[s->node];

	if (s->status == SAGA_STEP_EVALUATING ||
		(s->status == SAGA_STEP_CALLING && node->action_local))
		return SAGA_STEP_IDLE;
	if (s->status == SAGA_STEP_UNDO_CALLING && node->compensation_local)
		return s->happened ? SAGA_STEP_DONE : SAGA_STEP_FAILED;
	return s->status;
}

#define SAME(field) CHECK(a->field == b->field, \
	"the fold differs in %s: %lld, fold has %lld (step %d)", #field, \
	(long long) a->field, (long long) b->field, i)

static void
compare_step(const SagaStep *a, const SagaStep *b, int i)
{
	SAME(node);
	SAME(run);
	SAME(retake);
	SAME(replaces);
	SAME(made_at);
	SAME(value);
	SAME(first_run);
	SAME(runs_open);
	SAME(replaced);
	SAME(breakpoint);
	SAME(evaluated);
	SAME(region);
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

void
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
	SAME(past_pivot);
	SAME(failed_node);
	SAME(stuck_node);
	SAME(seq);
	SAME(open);
	SAME(nheld);
	SAME(nwaiting);
	SAME(nbusy);
	SAME(nstuck);
	SAME(restarts);
	SAME(back_to);
	SAME(deadline);
	SAME(stuck_hook_due);
	SAME(stuck_hooks);
	SAME(ready.n);
	SAME(nsteps);
	SAME(nruns);
	SAME(nmail);
	SAME(hook.status);
	compare_step(&a->hook, &b->hook, -1);
	for (i = 0; i < a->nsteps; i++)
	{
		CHECK(lasting_status(a, i) == b->steps[i].status,
			  "the fold differs in the status of step %d: %d, fold has %d",
			  i, lasting_status(a, i), b->steps[i].status);
		compare_step(&a->steps[i], &b->steps[i], i);
	}
	for (i = 0; i < a->nruns; i++)
	{
		SAME(runs[i].scope);
		SAME(runs[i].owner);
		SAME(runs[i].number);
		SAME(runs[i].previous);
		SAME(runs[i].open);
		SAME(runs[i].started);
		for (int k = 0; k < graph.scopes[a->runs[i].scope].nnodes; k++)
			SAME(runs[i].steps[k]);
	}
	for (i = 0; i < a->nmail; i++)
		SAME(mail[i].seq);
	for (i = 0; i < a->ready.n; i++)
		SAME(ready.items[i]);
}

static bool
is_open(uint8 status)
{
	return status <= SAGA_STEP_STUCK ||
		(status >= SAGA_STEP_EVALUATING && status <= SAGA_STEP_SCOPED);
}

/* The counts of a state, found again from its steps. */
void
check_counts(const SagaState *state)
{
	int32		open = 0,
				held = 0,
				nstuck = state->hook.reason != SAGA_STUCK_NONE;

	for (int i = 0; i < state->nsteps; i++)
	{
		const SagaStep *s = &state->steps[i];
		bool		undoing = state->direction == SAGA_UNDO &&
			(state->back_to == SAGA_NO_NODE || s->region);

		nstuck += s->reason != SAGA_STUCK_NONE;
		if (s->replaced)
			continue;
		open += is_open(s->status);
		held += s->status == SAGA_STEP_FAILED && !s->continued && !undoing;
	}
	CHECK(open == state->open, "open is %d, not %d", state->open, open);
	CHECK(nstuck == state->nstuck, "nstuck is %d, not %d",
		  state->nstuck, nstuck);
	CHECK(held == state->nheld, "nheld is %d, not %d", state->nheld, held);
	for (int r = 0; r < state->nruns; r++)
	{
		int32		left = 0;

		for (int k = 0; k < graph.scopes[state->runs[r].scope].nnodes; k++)
			left += !state->steps[state->runs[r].steps[k]].settled;
		CHECK(left == state->runs[r].open, "run %d has %d open, not %d", r,
			  state->runs[r].open, left);
	}
}

/* What is out according to the machine is out according to the world. */
void
check_in_flight(void)
{
	int			nopen = 0;
	int			flags = live->hook.in_flight + live->stuck_hook_out;

	for (int i = ncalls - 1; i >= 0 && calls[i].epoch == epoch; i--)
		nopen += calls[i].open;
	for (int i = 0; i < live->nsteps; i++)
		flags += live->steps[i].in_flight + live->steps[i].claim_out;
	CHECK(flags == live->in_flight && nopen == flags,
		  "%d calls are out, the machine says %d (counts %d)", nopen,
		  flags, live->in_flight);
}

/* ------------------------------------------------------- order */

static int32
owner_of(int32 step)
{
	return live->runs[live->steps[step].run].owner;
}

static int
depth_of(int32 step)
{
	int			depth = 0;

	while ((step = owner_of(step)) >= 0)
		depth++;
	return depth;
}

/* Does step a come after step b, by the graph? */
static bool
comes_after(int32 a, int32 b)
{
	int			da = depth_of(a),
				db = depth_of(b);
	int32		ra,
				rb;

	for (int32 i = a; i >= 0; i = live->steps[i].replaces)
		if (i == b)
			return a != b;		/* a later take */
	for (; da > db; da--)
		a = owner_of(a);
	for (; db > da; db--)
		b = owner_of(b);
	for (;;)
	{
		if (a == b)
			return false;
		ra = live->steps[a].run;
		rb = live->steps[b].run;
		if (ra == rb)
			break;
		if (live->runs[ra].owner == live->runs[rb].owner)
		{
			const SagaStep *owner = &live->steps[live->runs[ra].owner];

			return nodes[owner->node].kind == SAGA_NODE_LOOP &&
				live->runs[ra].number > live->runs[rb].number;
		}
		a = live->runs[ra].owner;
		b = live->runs[rb].owner;
	}
	if (live->steps[a].node == live->steps[b].node)
		return live->steps[a].made_at > live->steps[b].made_at;
	/* what was made later followed this take, or one that came after it */
	return (reach[live->steps[b].node] >> live->steps[a].node) & 1 &&
		live->steps[a].made_at >= live->steps[b].made_at;
}

static bool
in_undo_phase(const SagaStep *s)
{
	return (s->status >= SAGA_STEP_UNDO_CALLING &&
			s->status <= SAGA_STEP_UNDO_STUCK) ||
		s->status == SAGA_STEP_UNDO_ACCEPTED;
}

static bool
is_undoing(const SagaStep *s)
{
	return live->direction == SAGA_UNDO &&
		(live->back_to == SAGA_NO_NODE || s->region);
}

/* Is something left of it? */
static bool
is_left(const SagaStep *s)
{
	return is_undoing(s) &&
		(s->in_flight || s->claiming ||
		 (nodes[s->node].has_compensation && (s->happened || s->maybe) &&
		  s->status != SAGA_STEP_UNDONE && s->status != SAGA_STEP_SKIPPED));
}

static bool
is_blocked(int32 step)
{
	for (int32 i = 0; i < live->nsteps; i++)
		if (i != step && is_left(&live->steps[i]) && comes_after(i, step))
			return true;
	return false;
}

static int64
newness(int32 i)
{
	const SagaStep *s = &live->steps[i];

	return s->happened || s->continued ? s->done_at :
		(INT64_C(1) << 32) + s->intent_at;
}

/* The compensation of a step is about to be called. */
void
check_undo_order(int32 step)
{
	const SagaStep *u = &live->steps[step];

	CHECK(is_undoing(u), "undo of %d going forward", step);
	cov[COV_OLD_TAKE_UNDONE] += u->replaced;
	cov[COV_BODY_UNDONE] += u->run > 0;
	if (graph.pivot >= 0 && live->back_to == SAGA_NO_NODE)
		for (int i = 0; i < nplaces; i++)
			CHECK(places[i].node != graph.pivot || places[i].undo ||
				  places[i].effects == 0,
				  "step %d: undo after the pivot has happened", step);
	if (graph.undo_order == SAGA_UNDO_PARALLEL || live->nsteps > 200)
		return;
	CHECK(!is_blocked(step),
		  "undo of step %d before that of one after it", step);
	if (graph.undo_order != SAGA_UNDO_REVERSE || live->nsteps > 60)
		return;
	for (int i = 0; i < live->nsteps; i++)
	{
		const SagaStep *s = &live->steps[i];

		if (i == step || !is_undoing(s))
			continue;
		CHECK(!in_undo_phase(s), "undo of step %d beside that of %d", step, i);
		CHECK(!(s->in_flight && s->status <= SAGA_STEP_STUCK),
			  "undo of step %d while %d is out", step, i);
		if ((s->status == SAGA_STEP_DONE ||
			 (s->status == SAGA_STEP_FAILED && s->maybe)) &&
			nodes[s->node].has_compensation && newness(i) > newness(step))
			CHECK(is_blocked(i), "undo of step %d before the newer %d",
				  step, i);
	}
}

static int32
step_of_place(int place)
{
	for (int32 i = 0; i < live->nsteps; i++)
		if (live->steps[i].node == places[place].node &&
			place_of(live, i, places[place].undo) == place)
			return i;
	return -1;
}

/* No effect that came after this one may be left, whatever the log says. */
void
check_effects_after(int place)
{
	int32		step;

	if (graph.undo_order == SAGA_UNDO_PARALLEL || graph.nnodes > 8 ||
		live->nsteps > 40 || (step = step_of_place(place)) < 0 ||
		!is_undoing(&live->steps[step]))
		return;
	for (int32 i = 0; i < live->nsteps; i++)
	{
		const SagaStep *s = &live->steps[i];
		const Place *action = &places[place_of(live, i, false)];
		const Place *undo = &places[place_of(live, i, true)];

		if (action->effects == 1 && undo->effects == 0 &&
			nodes[s->node].has_compensation && !action->forced &&
			!undo->forced && is_undoing(s) && comes_after(i, step))
			CHECK(s->status == SAGA_STEP_UNDONE ||
				  s->status == SAGA_STEP_SKIPPED,
				  "step %d is undone while %d still has its effect", step, i);
	}
}

/* ------------------------------------------------------- records */

/* A failure that is final: was it allowed to be?  (fold is still before it.) */
void
check_failure(const SagaRecord *r)
{
	const SagaStep *s = &fold->steps[r->node];
	const SagaNode *node = &nodes[s->node];
	bool		undoing = fold->direction == SAGA_UNDO &&
		(fold->back_to == SAGA_NO_NODE || s->region);
	int			broken = r->answer != SAGA_ANSWER_BROKEN ? 0 : 1 +
		(r->op == SAGA_OP_UNDO && s->status != SAGA_STEP_UNDO_BACKOFF &&
		 s->status != SAGA_STEP_UNDO_ACCEPTED ? 0 : s->broken);

	if (s->status == SAGA_STEP_ACCEPTED && r->answer == SAGA_ANSWER_UNKNOWN &&
		!undoing && !fold->terminating)
		CHECK(node->timeout > 0 &&
			  now >= places[place_of(live, r->node, false)].alive +
			  node->timeout, "step %d is given up while it is alive", r->node);
	if (r->op == SAGA_OP_UNDO)
		CHECK((r->due == 0) == (broken >= SAGA_BROKEN_LIMIT &&
								!fold->terminating),
			  "undo of step %d: %d broken answers, due %lld", r->node, broken,
			  (long long) r->due);
	if (r->op == SAGA_OP_EVAL)
		CHECK(!r->maybe, "an expression is in doubt");
	if (r->op != SAGA_OP_ACTION && r->op != SAGA_OP_EVAL)
		return;
	CHECK(r->attempt == s->attempts || r->attempt == s->attempts + 1 ||
		  s->status == SAGA_STEP_AWAITING,
		  "attempt %d of step %d after %d", r->attempt, r->node, s->attempts);
	CHECK(!(r->maybe && node->action_local), "a local step in doubt");
	CHECK(!(s->sticky && !r->maybe && r->answer != SAGA_ANSWER_DECLINED),
		  "step %d: doubt has vanished", r->node);
	if (undoing || fold->terminating)
		CHECK(r->due == 0, "step %d is to be tried again", r->node);
	else if (r->due == 0)
	{
		CHECK(broken == 0 || broken == SAGA_BROKEN_LIMIT,
			  "step %d is given up after %d broken answers", r->node, broken);
		if (r->answer == SAGA_ANSWER_UNKNOWN && node->at_most_once)
			cov[COV_ONCE_UNKNOWN]++;
		else if (r->answer == SAGA_ANSWER_TRANSIENT ||
				 r->answer == SAGA_ANSWER_UNKNOWN)
			CHECK(!node->after_pivot && node->retry.max_attempts > 0 &&
				  r->attempt >= node->retry.max_attempts &&
				  !(node->pivot && r->maybe),
				  "step %d is given up after %d attempts", r->node,
				  r->attempt);
		if (r->op == SAGA_OP_EVAL && node->kind == SAGA_NODE_LOOP &&
			node->max_iterations > 0 && s->value == node->max_iterations)
			cov[COV_LOOP_BOUND]++;
	}
	else
		CHECK(r->answer != SAGA_ANSWER_DECLINED,
			  "step %d is tried again though declined", r->node);
}

static const SagaStep *
pivot_of(const SagaState *state)
{
	return graph.pivot < 0 ? NULL :
		&state->steps[state->runs[0].steps[graph.pivot]];
}

static bool
pivot_passed(const SagaState *state)
{
	const SagaStep *pivot = pivot_of(state);

	return pivot && (pivot->status == SAGA_STEP_DONE ||
					 pivot->status == SAGA_STEP_SKIPPED || pivot->continued ||
					 state->past_pivot);
}

/* Somebody is to be called: is there reason to?  (fold is before it.) */
void
check_stuck(const SagaRecord *r)
{
	const SagaStep *pivot = pivot_of(fold);
	const SagaNode *node;

	if (r->reason == SAGA_STUCK_UNDO_FAILS)
		CHECK(fold->steps[r->node].attempts >= SAGA_UNDO_LIMIT &&
			  fold->steps[r->node].reason == SAGA_STUCK_NONE,
			  "step %d is reported after %d failures of its undo", r->node,
			  fold->steps[r->node].attempts);
	if (r->reason == SAGA_STUCK_HOOK_FAILS)
		CHECK(fold->hook.attempts >= 10, "a hook is reported after %d failures",
			  fold->hook.attempts);
	if (r->reason == SAGA_STUCK_DEADLINE)
		CHECK(pivot_passed(fold), "stuck by the deadline before the pivot's end");
	if (r->reason != SAGA_STUCK_DECLINED)
		return;
	node = &nodes[fold->steps[r->node].node];
	if (node->on_failure != SAGA_FAILURE_STUCK)
		CHECK(pivot && (node->after_pivot || pivot->maybe ||
						pivot_passed(fold)),
			  "step %d is stuck where undo is possible", r->node);
}

static bool
is_over(const SagaStep *s)
{
	return s->status == SAGA_STEP_DONE || s->status == SAGA_STEP_SKIPPED ||
		s->status == SAGA_STEP_NOT_TAKEN ||
		(s->status == SAGA_STEP_FAILED && s->continued);
}

/* Everything around the step must allow it to run. */
static void
check_place_in_graph(int32 step)
{
	const SagaStep *s = &live->steps[step];
	const SagaScopeRun *run = &live->runs[s->run];
	const SagaScope *scope = &graph.scopes[run->scope];
	const SagaNode *node = &nodes[s->node];

	for (int k = 0; k < node->ndeps; k++)
	{
		int32		dep = run->steps[node->deps[k] - scope->first];

		CHECK(is_over(&live->steps[dep]),
			  "step %d starts before step %d is over", step, dep);
	}
	for (int32 at = s->node; nodes[at].branch >= 0; at = nodes[at].branch)
	{
		const SagaStep *branch =
			&live->steps[run->steps[nodes[at].branch - scope->first]];

		CHECK(branch->status == SAGA_STEP_DONE &&
			  branch->value == nodes[at].branch_case,
			  "step %d runs in a case that was not taken", step);
	}
	if (run->owner < 0)
		return;
	CHECK(run->started && !live->steps[run->owner].replaced &&
		  live->steps[run->owner].status == SAGA_STEP_SCOPED,
		  "step %d runs in a body that does not", step);
	check_place_in_graph(run->owner);
	if (nodes[live->steps[run->owner].node].kind == SAGA_NODE_LOOP)
		CHECK(run->previous < 0 || live->runs[run->previous].open == 0,
			  "step %d runs beside an earlier iteration", step);
	else if (nodes[live->steps[run->owner].node].max_parallel > 0 &&
			 live->restarts == 0 && epoch == 0)
	{
		int			running = 0;

		for (int32 r = live->steps[run->owner].first_run; r >= 0;
			 r = live->runs[r].previous)
			running += live->runs[r].started && live->runs[r].open > 0;
		CHECK(running <= nodes[live->steps[run->owner].node].max_parallel,
			  "%d elements of step %d run at a time", running, run->owner);
	}
}

/* A call may have started before such a record of the same decision. */
static bool
in_decision(SagaRecordKind kind)
{
	for (int i = 0; i < out.nrecords; i++)
		if (out.records[i].kind == kind)
			return true;
	return false;
}

/* May this call start, as the saga stands? */
void
check_call(const SagaCommand *c)
{
	const SagaStep *s = c->node >= 0 ? &live->steps[c->node] : NULL;
	const SagaNode *node = s ? &nodes[s->node] : NULL;

	CHECK(!live->paused || in_decision(SAGA_RECORD_BREAKPOINT),
		  "a call starts while the saga is paused");
	CHECK(!live->terminating || c->op == SAGA_OP_CLAIM,
		  "a call starts while the saga is being terminated");
	CHECK(!live->deadline_stuck || c->op == SAGA_OP_CLAIM ||
		  c->op == SAGA_OP_HOOK, "a call starts after the deadline");
	if (c->op == SAGA_OP_CLAIM)
		CHECK(!(c->target == SAGA_OP_UNDO ? node->compensation_local :
				node->action_local), "a local call is claimed");
	if (c->op != SAGA_OP_ACTION && c->op != SAGA_OP_EVAL)
		return;
	if (in_decision(SAGA_RECORD_UNDO))
		return;
	CHECK(!is_undoing(s), "an action while undoing");
	CHECK(!s->replaced, "step %d was begun anew", c->node);
	check_place_in_graph(c->node);
	if (c->op == SAGA_OP_EVAL)
		return;
	CHECK(node->kind == SAGA_NODE_STEP, "step %d has no action", c->node);
	CHECK(!node->has_condition || s->evaluated,
		  "step %d runs without its condition", c->node);
	if (node->at_most_once)
		CHECK(!places[place_of(live, c->node, false)].unknown,
			  "step %d is sent again", c->node);
}

/* ------------------------------------------------------- the end */

/* Nothing may come out of an ended saga. */
void
check_silence(void)
{
	for (int i = 0; i < 3; i++)
	{
		SagaEvent	event = make_event(rnd(SAGA_EVENT_SIGNAL + 1));

		event.node = rnd(live->nsteps + 3) - 3;
		event.op = rnd(SAGA_OP_EVAL + 1);
		event.answer = rnd(SAGA_ANSWER_ACCEPTED + 1);
		event.verb = rnd(SAGA_VERB_BREAKPOINT + 1);
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
check_step_end(int i)
{
	const SagaStep *s = &live->steps[i];
	const SagaNode *node = &nodes[s->node];
	const Place *action = &places[place_of(live, i, false)];
	const Place *undo = &places[place_of(live, i, true)];
	bool		undone = s->status == SAGA_STEP_UNDONE;
	int			happened = node->kind == SAGA_NODE_UNDO ? s->happened :
		action->effects;

	if (node->kind > SAGA_NODE_UNDO || action->forced)
		return;
	/* the ending hook has committed, the record of the step was lost */
	if (hook_effects[live->direction] == 1 && !s->replaced &&
		s->status <= SAGA_STEP_BACKOFF)
	{
		if (live->state == SAGA_COMPLETED)
			CHECK(happened == 1 || node->kind == SAGA_NODE_UNDO,
				  "completed by the hook, but step %d is not", i);
		else
			CHECK(undo->effects == 0 && !(happened == 1 &&
										  node->has_compensation),
				  "compensated by the hook, but step %d is not", i);
		return;
	}
	if (s->happened)
		CHECK(happened == 1, "step %d is done, without effect", i);
	else if (s->status == SAGA_STEP_SKIPPED || !s->maybe)
		CHECK(happened == 0 || undone,
			  "step %d is not done, but has an effect", i);

	if (live->state == SAGA_COMPLETED && !s->replaced)
	{
		CHECK(is_over(s), "completed, but step %d is not (%d)", i, s->status);
		CHECK(undo->effects == 0, "completed, but step %d is undone", i);
	}
	if (undo->forced)
		return;
	if (undo->effects > 0)
		CHECK(happened == 1, "step %d: undo without action", i);
	if ((live->state == SAGA_COMPENSATED || went_back[i]) &&
		node->has_compensation && s->status != SAGA_STEP_SKIPPED)
	{
		if (undo_is_skipped(i))
			CHECK(undo->effects == 0, "step %d: a skipped undo has run", i);
		else
			CHECK(undo->effects == happened,
				  "%s, but step %d has %d effects and %d undos",
				  went_back[i] ? "went back" : "compensated", i,
				  happened, undo->effects);
	}
	if (live->state == SAGA_TERMINATED && !s->replaced)
	{
		if (!undone)
			CHECK(undo->effects == 0 || s->undo_maybe,
				  "terminated, step %d: undo not recorded", i);
		CHECK(!s->maybe || undone || s->status >= SAGA_STEP_UNDO_CALLING,
			  "terminated with step %d in doubt", i);
		CHECK(!s->undo_maybe, "terminated with the undo of %d in doubt", i);
	}
}

/* Each signal is recorded as often as it was sent, and taken at most once. */
static void
check_signals(void)
{
	static bool taken[MAX_LOG + 1];
	int			sent = 0,
				seen = 0;

	for (int i = 0; i < ninbox; i++)
		sent += inbox[i].kind == SAGA_EVENT_SIGNAL;
	memset(taken, 0, sizeof(bool) * (size_t) (nlog + 1));
	for (int i = 0; i < nlog; i++)
	{
		const SagaRecord *r = &records[i];

		seen += r->kind == SAGA_RECORD_SIGNAL;
		if (r->kind != SAGA_RECORD_DONE || r->op != SAGA_OP_ACTION ||
			nodes[live->steps[r->node].node].kind != SAGA_NODE_SIGNAL)
			continue;
		CHECK(r->value > 0 && r->value <= i &&
			  records[r->value - 1].kind == SAGA_RECORD_SIGNAL &&
			  records[r->value - 1].value ==
			  nodes[live->steps[r->node].node].signal,
			  "step %d took a signal that did not come", r->node);
		CHECK(!taken[r->value], "a signal is taken twice");
		taken[r->value] = true;
	}
	CHECK(seen <= sent, "%d signals are recorded, %d were sent", seen, sent);
}

/* Every step is found by its name, and finds itself and its numbers. */
static void
check_steps_found(void)
{
	for (int32 i = 0; i < live->nsteps; i++)
	{
		const SagaStep *s = &live->steps[i];
		const char *name = step_name(live, i);
		int32		found = saga_machine_find_step(live, name);
		int32		run = s->run;

		while (found >= 0 && found != i && s->retake == 0)
			found = live->steps[found].replaces;
		CHECK(found == i, "step %d is not found by its name %s", i, name);
		CHECK(saga_machine_seen_from(live, i, s->node) == i || s->replaced ||
			  live->runs[run].owner >= 0, "step %d does not see itself", i);
		for (int each = 0; each < 2; each++)
		{
			int32		owner;
			int32		n = saga_machine_number(live, i, each, &owner);

			for (run = s->run; live->runs[run].owner >= 0 &&
				 (nodes[live->steps[live->runs[run].owner].node].kind ==
				  SAGA_NODE_EACH) != each;
				 run = live->steps[live->runs[run].owner].run)
				;
			CHECK(n == (live->runs[run].owner < 0 ? -1 :
						live->runs[run].number) &&
				  owner == (live->runs[run].owner < 0 ? SAGA_NO_NODE :
							live->runs[run].owner),
				  "step %d has number %d", i, n);
		}
		for (int k = 0; k < nodes[s->node].ndeps; k++)
		{
			int32		seen = saga_machine_seen_from(live, i,
													  nodes[s->node].deps[k]);

			CHECK(seen >= 0 && live->steps[seen].run == s->run &&
				  (s->replaced || !live->steps[seen].replaced),
				  "step %d sees the wrong step %d", i, seen);
		}
	}
}

void
check_ended(void)
{
	int			pivots = 0;

	for (int i = 0; i < nplaces; i++)
	{
		if (places[i].effects > 0)
			CHECK(step_of_place(i) >= 0, "%s: an effect no step knows of",
				  places[i].name);
		if (places[i].node == graph.pivot && !places[i].undo &&
			!places[i].forced)
			pivots += places[i].effects;
	}
	CHECK(pivots <= 1, "the pivot has happened %d times", pivots);
	CHECK(live->state != SAGA_COMPENSATED || pivots == 0,
		  "compensated, but the pivot has happened");
	for (int i = 0; i < live->nsteps; i++)
		check_step_end(i);
	check_signals();
	check_steps_found();
	if (live->state == SAGA_COMPLETED || live->state == SAGA_COMPENSATED)
	{
		bool		has_hook = live->state == SAGA_COMPLETED ?
			graph.has_on_completed : graph.has_on_compensated;
		int			ran = hook_effects[live->state == SAGA_COMPENSATED];

		CHECK(ran == 0 || has_hook, "a hook has run");
		CHECK(!has_hook || ran == 1 || live->hook.status == SAGA_STEP_SKIPPED,
			  "the hook has not run");
	}
}
