/*
 * resolver.h
 *		Host names to addresses without blocking, for the connectors.
 */
#ifndef SAGA_RESOLVER_H
#define SAGA_RESOLVER_H

#include "postgres.h"

#include "machine.h"

typedef struct SagaResolve SagaResolve;

/*
 * The addresses as text, in the order to be tried; or n = 0 and the fault.
 * Valid during the call only.
 */
typedef void (*SagaResolved) (void *arg, int n, const char *const *addresses,
							  const char *fault);

/* True for what needs no resolving: addresses, socket directories, "". */
extern bool saga_resolve_is_literal(const char *host);

/*
 * Start.  The callback may come before this returns (a name in the hosts
 * file); then NULL is returned.  saga_resolve_forget() withdraws interest.
 */
extern SagaResolve *saga_resolve_start(const char *host, SagaResolved callback,
									   void *arg);
extern void saga_resolve_forget(SagaResolve *resolve);

extern SagaTime saga_resolver_next_due(SagaTime now);
extern void saga_resolver_run_timers(void);
extern void saga_resolver_close(void);

#endif							/* SAGA_RESOLVER_H */
