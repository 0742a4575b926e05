/*
 * sim_cases.c
 *		What must not crash the machine, and the few things about it that are
 *		fixed: the faults of graphs, the words (see machine_sim.c).
 */
#include "sim.h"

/* ------------------------------------------------------- nonsense */

/* Any record may come out of a damaged log. */
void
fuzz_fold(void)
{
	nlog = nflushed = rnd(nlog + 1);
	fold_log();
	for (int i = 0; i < 60; i++)
	{
		SagaRecord	r;
		int32		seq = fold->seq;

		memset(&r, 0, sizeof(r));
		r.seq = chance(20) ? rnd(10) : seq + 1;
		r.kind = chance(20) ? rnd(256) : rnd(SAGA_RECORD_REOPENED + 1);
		r.op = chance(20) ? rnd(256) : rnd(SAGA_OP_EVAL + 1);
		r.answer = chance(20) ? rnd(256) : rnd(SAGA_ANSWER_ACCEPTED + 1);
		r.state = chance(20) ? rnd(256) : rnd(SAGA_TERMINATED + 1);
		r.cause = chance(20) ? rnd(256) : rnd(SAGA_CAUSE_OPERATOR + 1);
		r.reason = chance(20) ? rnd(256) : rnd(SAGA_STUCK_HOOK_FAILS + 1);
		r.maybe = chance(500);
		r.node = chance(20) ? (int32) next_random() : rnd(fold->nsteps + 3) - 3;
		r.attempt = chance(50) ? (int32) next_random() : rnd(12);
		r.value = chance(20) ? (int64) next_random() : rnd(6) - 1;
		r.due = chance(500) ? 0 : chance(50) ? (SagaTime) next_random() :
			now + rnd(100) * SAGA_SECOND;
		if (r.kind == SAGA_RECORD_ENDED && chance(900))
			continue;
		if (fold->nsteps > 2000 || (r.value > 50 && r.value <= SAGA_MAX_STEPS))
			break;				/* it would fit, and take its time */
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
		SagaEvent	event = make_event(rnd(SAGA_EVENT_SIGNAL + 1));

		event.node = rnd(fold->nsteps + 3) - 3;
		event.op = rnd(SAGA_OP_EVAL + 1);
		event.answer = rnd(SAGA_ANSWER_ACCEPTED + 1);
		event.verb = rnd(SAGA_VERB_UNDO_COMPLETED + 1);
		event.value = rnd(4) - 1;
		event.force = chance(300);
		now += rnd(100) * SAGA_SECOND;
		saga_machine_decide(fold, &event, now, &out);
	}
}

/* ------------------------------------------------------- what is fixed */

/* The faults that saga_graph_finish() must find. */
void
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
		int			body;		/* node 3 is the body of node 'body' - 1 */
		int			savepoint;	/* node 2 goes back to node 'savepoint' - 1 */
	}			cases[] = {
		{{{0}, {1}, {2}, {3}}, 1 << 2, 0xc, 0, SAGA_GRAPH_OK, 0, 0, 0},
		{{{0}, {1, 4}, {2}, {3}}, 0, 0, 1, SAGA_GRAPH_CYCLE, 0xe, 0, 0},
		{{{2}, {1}, {4}, {3}}, 0, 0, 2, SAGA_GRAPH_CYCLE, 0x3, 0, 0},
		{{{2}, {1}, {2}, {3}}, 0, 0, 1, SAGA_GRAPH_CYCLE, 0x3, 0, 0},
		{{{1}, {1}, {0}, {0}}, 0, 0, 1, SAGA_GRAPH_CYCLE, 0x1, 0, 0},
		{{{0}, {1}, {2}, {3}}, 3, 0, 1, SAGA_GRAPH_TWO_PIVOTS, 0x2, 0, 0},
		{{{0}, {1}, {0}, {3}}, 1, 0xa, 1, SAGA_GRAPH_UNDO_MISSING, 0x8, 0, 0},
		{{{0}, {0}, {0}, {0}}, 0, 0x4, 1, SAGA_GRAPH_UNDO_MISSING, 0x4, 0, 0},
		/* a body after the pivot is after it; one before it is not */
		{{{0}, {1}, {2}, {0}}, 1, 0xe, 0, SAGA_GRAPH_OK, 0, 2, 0},
		{{{2}, {0}, {1}, {0}}, 1, 0xe, 1, SAGA_GRAPH_UNDO_MISSING, 0x8, 2, 0},
		{{{0}, {1}, {2}, {0}}, 8, 0, 1, SAGA_GRAPH_PIVOT_IN_BODY, 0x8, 2, 0},
		{{{0}, {1}, {2}, {0}}, 0, 0, 0, SAGA_GRAPH_OK, 0, 0, 1},
		{{{3}, {0}, {0}, {0}}, 0, 0, 1, SAGA_GRAPH_BAD_SAVEPOINT, 0x4, 0, 1},
		{{{0}, {1}, {2}, {0}}, 0, 0, 1, SAGA_GRAPH_BAD_SAVEPOINT, 0x4, 2, 4},
		{{{0}, {1}, {2}, {0}}, 0, 0, 1, SAGA_GRAPH_NO_BODY, 0x2, -2, 0},
	};

	for (size_t k = 0; k < sizeof(cases) / sizeof(cases[0]); k++)
	{
		SagaGraphFault faults[1] = {{SAGA_GRAPH_OK, 0}};
		SagaScope	scopes[2] = {{0, 3, -1}, {3, 1, -1}};
		int32		deps[4][2];
		int			body = abs(cases[k].body) - 1;
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
		if (body >= 0)
		{
			graph.nscopes = 2;
			graph.scopes = scopes;
			nodes[body].kind = SAGA_NODE_EACH;
			nodes[body].body = cases[k].body > 0 ? 1 : 0;
		}
		if (cases[k].savepoint > 0)
		{
			nodes[cases[k].savepoint - 1].kind = SAGA_NODE_SAVEPOINT;
			nodes[2].on_failure = SAGA_FAILURE_GOTO;
			nodes[2].savepoint = cases[k].savepoint - 1;
		}
		reset_pool(&graph_arena);
		n = saga_graph_finish(&graph, NULL, &graph_arena, faults, 1);
		CHECK(n == cases[k].nfaults && faults[0].kind == cases[k].kind &&
			  (n == 0 || (cases[k].nodes >> faults[0].node) & 1),
			  "graph %d: %d faults, the first %d at node %d", (int) k, n,
			  faults[0].kind, faults[0].node);
	}
}

/* The words and their reverse. */
void
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
	for (int i = 0; i <= SAGA_VERB_UNDO_COMPLETED; i++)
		CHECK(strcmp(saga_verb_name(i), "?") != 0, "verb %d", i);
	CHECK(saga_record_from_name("no such") == -1 &&
		  saga_record_from_name(NULL) == -1, "an unknown word is known");
}
