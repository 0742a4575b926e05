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
 * The world: a coordinator with a log whose tail can be lost (sim_coordinator.c);
 * local calls, whose effect and outcome row share a commit; participants with
 * a barrier, to which calls are sent once their records are flushed, from
 * which answers are lost, late, doubled or never given, and which may take a
 * call on and answer it much later (sim_world.c); signals, crashes, operators,
 * clocks that jump forward.  After a while the world turns honest, and every
 * saga must end, or wait for an operator and say why (sim_check.c).
 */
#include <signal.h>

#include "sim.h"

static int	chaos;				/* of everything but participants, 1 to 8 */

static int64 cov_state[SAGA_TERMINATED + 1];
static int64 cov_verb[SAGA_VERB_UNDO_COMPLETED + 1][2];

/* ------------------------------------------------------- the operator */

static void
use_verb(SagaVerb verb, int32 node, bool force)
{
	SagaEvent	event = make_event(SAGA_EVENT_VERB);
	bool		undo = node >= 0 && live->direction == SAGA_UNDO &&
		(live->back_to == SAGA_NO_NODE || live->steps[node].region);
	const char *refusal = saga_machine_verb_refusal(live, verb, node, force);

	event.verb = verb;
	event.node = node;
	event.force = force;
	event.value = verb == SAGA_VERB_BREAKPOINT ? chance(700) :
		chance(300) ? SAGA_NEVER : now + rnd(300) * SAGA_SECOND;
	trace("verb: %s %d (%s)%s", saga_verb_name(verb), node,
		  step_name(live, node), force ? " force" : "");
	if (force && refusal == NULL)
	{
		cov[COV_FORCED]++;
		if (verb == SAGA_VERB_SKIP_STEP && node >= 0)
			places[place_of(live, node, undo)].forced = true;
		if (verb == SAGA_VERB_TERMINATE)
			for (int i = 0; i < nplaces; i++)
				places[i].forced = true;
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
		SAGA_VERB_SKIP_STEP, SAGA_VERB_TERMINATE, SAGA_VERB_RERUN_FROM,
		SAGA_VERB_RERUN_FROM, SAGA_VERB_RERUN_FROM, SAGA_VERB_SET_DEADLINE,
		SAGA_VERB_BREAKPOINT, SAGA_VERB_BREAKPOINT, SAGA_VERB_UNDO_COMPLETED
	};
	SagaVerb	verb = verbs[rnd(21)];
	int32		node = SAGA_NO_NODE;

	if (verb == SAGA_VERB_RETRY_STEP || verb == SAGA_VERB_SKIP_STEP ||
		verb == SAGA_VERB_RERUN_FROM || verb == SAGA_VERB_BREAKPOINT)
		node = rnd(live->nsteps + 1) - 1;
	if (verb == SAGA_VERB_RERUN_FROM && live->nsteps > 300)
		return;
	use_verb(verb, node, chance(150));
}

/* Nothing moves any more: there must be a reason, and something that helps. */
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
	if (live->state == SAGA_WAITING)
	{
		bool		helped = false;

		/* signals come, and what was accepted is done after all */
		for (int32 i = 0; i < live->nsteps && !helped; i++)
			if (live->steps[i].status == SAGA_STEP_AWAITING &&
				!live->steps[i].replaced)
			{
				put_inbox(SAGA_EVENT_SIGNAL, -1, SAGA_ANSWER_DONE,
						  nodes[live->steps[i].node].signal);
				helped = true;
			}
		/* ... or was refused for a skip that nobody heard of: ask again */
		for (int32 i = 0; i < live->nsteps && !helped; i++)
		{
			bool		undo = live->steps[i].status == SAGA_STEP_UNDO_ACCEPTED;

			if ((undo || live->steps[i].status == SAGA_STEP_ACCEPTED) &&
				places[place_of(live, i, undo)].key == KEY_REFUSED)
			{
				use_verb(SAGA_VERB_SKIP_STEP, i, false);
				helped = true;
			}
		}
		for (int i = 0; i < nplaces; i++)
			if (places[i].key == KEY_ACCEPTED && !places[i].completing)
			{
				complete(i);
				helped = true;
			}
		CHECK(helped, "waiting for nothing");
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
	else if (round % 3 == 1 || chance(900))
		use_verb(SAGA_VERB_SKIP_STEP, node, false);
	else
		use_verb(SAGA_VERB_TERMINATE, SAGA_NO_NODE, false);
	CHECK(out.ignored == NULL, "no verb helps: %s", out.ignored);
}

/* ------------------------------------------------------- one saga */

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
	return flush();
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
	else if (what < 75)
		put_inbox(SAGA_EVENT_SIGNAL, -1, SAGA_ANSWER_DONE, rnd(2));
	else if (what < 80)
	{
		SagaEvent	event = make_event(rnd(SAGA_EVENT_SIGNAL + 1));

		event.node = -4 - rnd(2) * 1000;
		event.op = rnd(SAGA_OP_EVAL + 1);
		event.answer = rnd(SAGA_ANSWER_ACCEPTED + 1);
		event.value = -1 - rnd(5);
		if (event.kind != SAGA_EVENT_TIMER && event.kind != SAGA_EVENT_VERB)
		{
			trace("nonsense");
			decide(&event);
			CHECK(out.nrecords == 0, "nonsense has an effect");
		}
	}
}

/* From where it is to its end. */
static void
drive(int budget)
{
	int64		helped = 0;

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
		if ((m.kind == MSG_EXECUTE || m.kind == MSG_SILENT) &&
			!calls[m.id].local)
			execute(&calls[m.id], &m.value);
		else if (m.kind == MSG_COMPLETE && places[m.id].key == KEY_ACCEPTED &&
				 live->state == SAGA_TERMINATED)
			complete(m.id);
	}
	check_ended();
	nlog = nflushed;
	fold_log();
	CHECK(SAGA_STATE_ENDED(live->state), "the log does not end");
	out.nrecords = out.ncommands = 0;
	saga_machine_resume(live, now, &out);
	CHECK(out.nrecords == 0 && out.ncommands == 0,
		  "recovery of an ended saga does something");
}

/* A parent undoes the saga though it has completed. */
static void
undo_completed(void)
{
	flush();
	if (chance(500))
	{
		trace("loaded again");
		epoch++;
		fold_log();
	}
	if (saga_machine_verb_refusal(live, SAGA_VERB_UNDO_COMPLETED,
								  SAGA_NO_NODE, false) != NULL)
	{
		use_verb(SAGA_VERB_UNDO_COMPLETED, SAGA_NO_NODE, false);
		return;
	}
	honest = chance(300);
	use_verb(SAGA_VERB_UNDO_COMPLETED, SAGA_NO_NODE, false);
	drive(5 + rnd(40));
}

static void
run_saga(void)
{
	SagaEvent	event = make_event(SAGA_EVENT_START);
	int			budget;

	make_world();
	chaos = chance(200) ? 1 + rnd(8) : 1;
	new_coordinator(chance(250) ? now + rnd(300) * SAGA_SECOND : SAGA_NEVER);
	budget = 5 + rnd(chance(200) ? 200 : 50);
	if (chance(20))
		use_random_verb();		/* before it has started */
	decide(&event);
	drive(budget);
	if (live->state == SAGA_COMPLETED && chance(200))
		undo_completed();
	check_end();
	if (chance(30))
		fuzz_fold();
}

/* ------------------------------------------------------- report */

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
	"body in a body", "completed before accepted", "accepted, then failed",
	"inbox row read again", "heartbeat", "signal before its step",
	"signal awaited", "at most once, unknown",
	"went back to a save-point", "... and then undone wholly",
	"... while others began", "rerun_from", "replaced take undone",
	"step of a body undone", "condition false, or first case",
	"loop at its bound", "seen waiting", "breakpoint met",
	"completed, then undone", "undo accepted",
};

static int	missing;

static void
show(const char *group, const char *name, int64 n, bool required)
{
	printf("  %-10s %-32s %12lld%s\n", group, name, (long long) n,
		   n == 0 && required ? "   NEVER" : "");
	missing += n == 0 && required;
}

static bool
answer_is_possible(int op, int answer)
{
	switch (op)
	{
		case SAGA_OP_HOOK:
		case SAGA_OP_EVAL:
			return answer < SAGA_ANSWER_UNKNOWN;
		case SAGA_OP_CLAIM:
			return answer != SAGA_ANSWER_ACCEPTED;
		default:
			return true;
	}
}

static void
report(int64 count, double seconds)
{
	printf("%lld sagas in %.1f s of CPU: %.2f million decisions/s, %.2f million"
		   " records/s, world and checks included\n", (long long) count,
		   seconds, (double) ndecisions / seconds / 1e6,
		   (double) nrecords_total / seconds / 1e6);
	for (int i = SAGA_COMPLETED; i <= SAGA_TERMINATED; i++)
		show("end", saga_state_name(i), cov_state[i], true);
	for (int i = 0; i <= SAGA_RECORD_REOPENED; i++)
		show("record", saga_record_name(i), cov_record[i], true);
	for (int i = SAGA_CAUSE_DECLINED; i <= SAGA_CAUSE_OPERATOR; i++)
		show("cause", saga_cause_name(i), cov_cause[i],
			 i != SAGA_CAUSE_ABORTED);
	for (int i = SAGA_STUCK_DECLINED; i <= SAGA_STUCK_HOOK_FAILS; i++)
		show("stuck", saga_stuck_reason_name(i), cov_reason[i], true);
	for (int op = 0; op <= SAGA_OP_EVAL; op++)
		for (int i = 0; i <= SAGA_ANSWER_ACCEPTED; i++)
			if (answer_is_possible(op, i))
				show(saga_op_name(op), saga_answer_name(i), cov_answer[op][i],
					 true);
	for (int i = 0; i <= SAGA_VERB_UNDO_COMPLETED; i++)
	{
		show("verb", saga_verb_name(i), cov_verb[i][0], true);
		show("ignored", saga_verb_name(i), cov_verb[i][1], true);
	}
	for (int i = 0; i < COV_COUNT; i++)
		show("world", cov_names[i], cov[i], true);
}

/* An assertion of the machine is a failure like others. */
static void
on_abort(int sig)
{
	fail("an assertion of the machine");
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
	make_pools();
	signal(SIGABRT, on_abort);

	clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t0);
	if (sigsetjmp(failed, 1))
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
	clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t1);
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
