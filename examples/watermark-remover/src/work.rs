//! What each request does in the database: values that [`crate::database`] can run again from the start when a session
//! is lost. The switch between the two credit systems is here, and nowhere else.

use tokio_postgres::{Client, Transaction};

use crate::{
    config::Version,
    credit_service, credit_service_simplified,
    database::{Read, Write},
    failure::Failure,
    ledger::{self, Balance, Credits, Login},
};

/// Does a session answer?
pub struct Ping;

/// Find the user of an email.
pub struct LogIn {
    /// As in `users.email`.
    pub email: String,
}

/// Show a user's credits.
pub struct ShowCredits {
    /// Which credit system answers.
    pub version: Version,
    /// As in `users.api_token`.
    pub token: String,
}

/// Take credits from a user.
pub struct Deduct {
    /// As in `users.api_token`.
    pub token: String,
    /// How many, above zero.
    pub amount: i64,
    /// What for.
    pub reason: String,
    /// 0 but for a fault on purpose, see [`ledger::deduct`].
    pub spared: i64,
}

/// Put a user on a plan.
pub struct Upgrade {
    /// Which credit system answers.
    pub version: Version,
    /// As in `users.api_token`.
    pub token: String,
    /// The plan's name.
    pub plan: String,
}

impl Read for Ping {
    type Output = ();

    async fn run(&self, client: &Client) -> Result<(), Failure> {
        client.simple_query("SELECT 1").await?;
        Ok(())
    }
}

impl Read for LogIn {
    type Output = Login;

    async fn run(&self, client: &Client) -> Result<Login, Failure> {
        ledger::login(client, &self.email).await
    }
}

impl Read for ShowCredits {
    type Output = Credits;

    async fn run(&self, client: &Client) -> Result<Credits, Failure> {
        let user_id = ledger::user_of(client, &self.token).await?;
        match self.version {
            Version::V1 => credit_service::credits(client, user_id).await,
            Version::V2 => credit_service_simplified::credits(client, user_id).await,
        }
    }
}

impl Write for Deduct {
    type Output = Balance;

    async fn run(&self, tx: &Transaction<'_>) -> Result<Balance, Failure> {
        let user_id = ledger::user_of(tx, &self.token).await?;
        ledger::deduct(tx, user_id, self.amount, &self.reason, self.spared).await
    }
}

impl Write for Upgrade {
    type Output = Balance;

    async fn run(&self, tx: &Transaction<'_>) -> Result<Balance, Failure> {
        let user_id = ledger::user_of(tx, &self.token).await?;
        match self.version {
            Version::V1 => credit_service::upgrade(tx, user_id, &self.plan).await,
            Version::V2 => credit_service_simplified::upgrade(tx, user_id, &self.plan).await,
        }
    }
}
